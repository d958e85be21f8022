"""Latency of ONNX artefacts on this machine: one process each, taking turns, one session alive at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.artefact.clock import alternate
from zoo.artefact.engines.runtimes import REFERENCE
from zoo.artefact.predictor import Predictor
from zoo.base.errors import UsageError
from zoo.base.machine import cores
from zoo.base.progress import track

__all__ = ["LatencyConfig", "answering", "latencies", "timings"]


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
    engine: str | None = None
    """As zoo.artefact.predictor.Predictor takes it."""

    def __post_init__(self) -> None:
        for name, low in (("batch", 1), ("threads", 0), ("rounds", 1), ("warmup", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.seconds <= 0:
            raise UsageError(f"seconds must be positive, got {self.seconds}")


def answering(path: Path, config: LatencyConfig) -> Predictor:
    """What answers for a file under these settings, loaded and checked; its `engine` is what :func:`latencies` times.

    Raises:
        PocketzooError: see zoo.artefact.predictor.Predictor.
    """
    return Predictor(path, threads=config.threads or cores(), engine=config.engine)


def latencies(
    paths: Sequence[Path], config: LatencyConfig, *, engines: Mapping[Path, str] | None = None
) -> dict[Path, list[list[float]]]:
    """Time every file once per round, with a progress bar: milliseconds of each inference, by file and round.

    Args:
        paths: ONNX files.
        config: how to measure.
        engines: what computes each of them; None: ONNX Runtime, which needs no golden answer, so that graphs are timed
            before they are published.

    Raises:
        PocketzooError: a measuring process failed.
    """
    named = engines or dict.fromkeys(paths, REFERENCE)
    return dict(zip(paths, timings([(path, named[path]) for path in paths], config), strict=True))


def timings(runs: Sequence[tuple[Path, str]], config: LatencyConfig) -> list[list[list[float]]]:
    """As :func:`latencies`, of files with what computes them; the same file may come with several engines."""
    settings = [str(config.batch), str(config.threads or cores()), str(config.seconds), str(config.warmup)]
    names = [f"{path} in {engine}" for path, engine in runs]
    commands = {
        name: ["-m", "zoo.artefact.latency_worker", str(path), engine, *settings]
        for name, (path, engine) in zip(names, runs, strict=True)
    }
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    turns = alternate(commands, config.rounds)
    for name, _, answer in track(turns, total=len(commands) * config.rounds, description="Timing"):
        found[name].append(answer["samples_ms"])
    return [found[name] for name in names]
