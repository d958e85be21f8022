"""Measuring time: warm-up, percentiles, and processes that take turns.

Variants are never timed side by side in one process: the thread pools of an idle session spin on the same cores
and slow the other one down, up to threefold.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.errors import PocketzooError

__all__ = ["Timing", "alternate", "sample_ms", "since_start", "summarise"]

_STARTED = "POCKETZOO_STARTED"
"""Tells a process when it was started, on the machine's monotonic clock."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Percentiles of a sample of durations, in milliseconds."""

    n: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


def summarise(samples_ms: Sequence[float]) -> Timing:
    """Percentiles (linear interpolation) of at least one duration in milliseconds."""
    if not samples_ms:
        raise ValueError("no durations to summarise")
    p50, p95, p99 = (float(value) for value in np.percentile(np.asarray(samples_ms), (50, 95, 99)))
    return Timing(n=len(samples_ms), p50_ms=p50, p95_ms=p95, p99_ms=p99)


def sample_ms(call: Callable[[], object], *, seconds: float, warmup: int, at_least: int = 20) -> list[float]:
    """Call repeatedly for about `seconds` (and at least `at_least` times) after `warmup` uncounted calls.

    Returns:
        The duration of each counted call in milliseconds.
    """
    for _ in range(warmup):
        call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < at_least or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        samples.append((time.perf_counter() - begin) * 1000)
    return samples


def alternate(commands: Mapping[str, Sequence[str]], rounds: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Run every command once per round, one process at a time, so that drift of the machine hits all alike.

    Args:
        commands: name -> arguments of the Python interpreter (`["-m", "zoo.latency_worker", ...]`); each prints one
            JSON object as its last line.
        rounds: how often each command runs.

    Yields:
        Name, round, and the object printed.

    Raises:
        PocketzooError: a process failed; carries its last words.
    """
    for number in range(rounds):
        for name, arguments in commands.items():
            environment = os.environ | {_STARTED: str(time.monotonic())}
            done = subprocess.run(
                [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment
            )
            if done.returncode != 0:
                raise PocketzooError(f"measuring {name} failed: {done.stderr.strip()[-500:]}")
            yield name, number, json.loads(done.stdout.strip().splitlines()[-1])


def since_start() -> float:
    """Seconds since :func:`alternate` started this process; the interpreter's own start is among them.

    Raises:
        PocketzooError: something else started it.
    """
    if _STARTED not in os.environ:
        raise PocketzooError("this process was not started by zoo.clock.alternate, which tells it the time")
    return time.monotonic() - float(os.environ[_STARTED])
