"""Measuring time: warm-up, medians and percentiles over rounds, and processes that take turns.

Variants are never timed side by side in one process: the thread pools of an idle session spin on the same cores
and slow the other one down, up to threefold.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.base.errors import PocketzooError
from zoo.base.statistics.intervals import median_interval

__all__ = ["Timing", "alternate", "sample_ms", "since_start", "summarise"]

_STARTED = "POCKETZOO_STARTED"
"""Tells a process when it was started, on the machine's monotonic clock."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Durations of several rounds, in milliseconds, rounded to a tenth of a microsecond."""

    n: int
    """Durations of all rounds."""
    p50_ms: float
    """Median of the rounds' medians: a round lasts for a time, so that over all durations the fast ones weigh more."""
    low_ms: float | None
    high_ms: float | None
    """How sure that is, see zoo.base.statistics.intervals.median_interval; None of a single round."""
    p95_ms: float
    p99_ms: float
    """Over all durations: of single rounds they are of too few."""
    round_ms: tuple[float, ...]
    """Median of each round."""


def summarise(rounds_ms: Sequence[Sequence[float]]) -> Timing:
    """Median and percentiles (linear interpolation) of rounds of at least one duration each, in milliseconds."""
    if not rounds_ms or not all(rounds_ms):
        raise ValueError("no durations to summarise")
    medians = [statistics.median(durations) for durations in rounds_ms]
    whole = np.concatenate([np.asarray(durations, dtype=np.float64) for durations in rounds_ms])
    low, high = median_interval(medians) or (None, None)
    return Timing(
        n=len(whole),
        p50_ms=round(statistics.median(medians), 4),
        low_ms=None if low is None else round(low, 4),
        high_ms=None if high is None else round(high, 4),
        p95_ms=round(float(np.percentile(whole, 95)), 4),
        p99_ms=round(float(np.percentile(whole, 99)), 4),
        round_ms=tuple(round(median, 4) for median in medians),
    )


def sample_ms(
    call: Callable[[], object], *, seconds: float, warmup: int, at_least: int = 20, pause: float = 0.0
) -> list[float]:
    """Call repeatedly for about `seconds` (and at least `at_least` times) after `warmup` uncounted calls.

    Args:
        call: what to time.
        seconds: for all calls, the pauses included.
        warmup: calls that are not counted.
        at_least: calls that are.
        pause: seconds between the end of a call and the next one.

    Returns:
        The duration of each counted call in milliseconds.
    """
    for _ in range(warmup):
        call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < at_least or time.perf_counter() < end:
        time.sleep(pause)
        begin = time.perf_counter()
        call()
        samples.append((time.perf_counter() - begin) * 1000)
    return samples


def alternate(
    commands: Mapping[str, Sequence[str]],
    rounds: int,
    environments: Mapping[str, Mapping[str, str | None]] | None = None,
) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Run every command once per round, one process at a time, so that drift of the machine hits all alike.

    Args:
        commands: name -> arguments of the Python interpreter (`["-m", "zoo.artefact.latency_worker", ...]`); each
            prints one JSON object as its last line.
        rounds: how often each command runs.
        environments: name -> variables that its process has in place of this one's; None: it lacks this one.

    Yields:
        Name, round, and the object printed.

    Raises:
        PocketzooError: a process failed; carries its last words.
    """
    for number in range(rounds):
        for name, arguments in commands.items():
            changed = os.environ | (environments or {}).get(name, {}) | {_STARTED: str(time.monotonic())}
            environment = {key: value for key, value in changed.items() if value is not None}
            code, said, complaint = _finish([sys.executable, *arguments], environment)
            if code != 0:
                raise PocketzooError(f"measuring {name} failed: {complaint.strip()[-500:]}")
            yield name, number, json.loads(said.strip().splitlines()[-1])


def _finish(command: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code and output of a process; interrupted meanwhile, it ends with all that it has started."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # One of its own, which can be ended as a whole.
        process_group=0,
    ) as process:
        try:
            said, complaint = process.communicate()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()
            raise
        return process.returncode, said, complaint


def since_start() -> float:
    """Seconds since :func:`alternate` started this process; the interpreter's own start is among them.

    Raises:
        PocketzooError: something else started it.
    """
    if _STARTED not in os.environ:
        raise PocketzooError("this process was not started by zoo.artefact.clock.alternate, which tells it the time")
    return time.monotonic() - float(os.environ[_STARTED])
