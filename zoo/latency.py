"""Latency of ONNX artefacts on this machine: one process each, taking turns, one session alive at a time."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.clock import alternate
from zoo.errors import UsageError
from zoo.machine import cores
from zoo.progress import track

__all__ = ["LatencyConfig", "latencies", "speedup", "turns"]


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """How to measure."""

    batch: int = 1
    threads: int = 0
    """0: all cores that this process may use."""
    rounds: int = 5
    """Processes per artefact; they take turns."""
    seconds: float = 0.3
    """Measured time per process."""
    warmup: int = 20
    """Uncounted inferences per process."""

    def __post_init__(self) -> None:
        for name, low in (("batch", 1), ("threads", 0), ("rounds", 1), ("warmup", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.seconds <= 0:
            raise UsageError(f"seconds must be positive, got {self.seconds}")


def turns(paths: Sequence[Path], config: LatencyConfig) -> Iterator[tuple[Path, list[float]]]:
    """Time every file once per round.

    Yields:
        A file and the milliseconds of each of its inferences in this round.

    Raises:
        PocketzooError: a measuring process failed.
    """
    settings = [str(config.batch), str(config.threads or cores()), str(config.seconds), str(config.warmup)]
    commands = {str(path): ["-m", "zoo.latency_worker", str(path), *settings] for path in paths}
    for name, _, answer in alternate(commands, config.rounds):
        yield Path(name), answer["samples_ms"]


def latencies(paths: Sequence[Path], config: LatencyConfig) -> dict[Path, list[list[float]]]:
    """Milliseconds of each inference, by file and round, with a progress bar; errors as :func:`turns`."""
    found: dict[Path, list[list[float]]] = {path: [] for path in paths}
    for path, samples in track(turns(paths, config), total=len(paths) * config.rounds, description="Timing"):
        found[path].append(samples)
    return found


def speedup(found: Mapping[Path, Sequence[Sequence[float]]], parent: Path, child: Path) -> float:
    """How many times faster `child` is: the median, over the rounds, of the ratio of both files' medians.

    A round's two processes ran one after the other, so that a busy machine slows both.
    """
    rounds = zip(found[parent], found[child], strict=True)
    return statistics.median(statistics.median(slow) / statistics.median(fast) for slow, fast in rounds)
