"""Latency of artefacts: alternating processes, one session alive at a time, all in one run."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.environment import environment
from zoo.clock import alternate, summarise
from zoo.errors import UsageError
from zoo.files import sha256_file
from zoo.machine import cores
from zoo.progress import track

__all__ = ["LatencyConfig", "measure_latency"]


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


def measure_latency(paths: Sequence[Path], config: LatencyConfig) -> list[dict[str, Any]]:
    """One complete row per ONNX file; percentiles over the durations of all rounds.

    Raises:
        PocketzooError: a measuring process failed.
    """
    threads = config.threads or cores()
    settings = [str(config.batch), str(threads), str(config.seconds), str(config.warmup)]
    commands = {str(path): ["-m", "bench.worker", str(path), *settings] for path in paths}
    digests = {str(path): sha256_file(path) for path in paths}
    samples: dict[str, list[float]] = {name: [] for name in commands}
    turns = alternate(commands, config.rounds)
    for name, _, answer in track(turns, total=len(commands) * config.rounds, description="Measuring latency"):
        samples[name] += answer["samples_ms"]
    run = uuid.uuid4().hex
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = []
    for path in paths:
        timing = summarise(samples[str(path)])
        rows.append(
            {
                "artefact": path.parent.name,
                "file": path.name,
                "digest": digests[str(path)],
                "run": run,
                "batch": config.batch,
                "threads": threads,
                "rounds": config.rounds,
                "warmup": config.warmup,
                "n": timing.n,
                "p50_ms": round(timing.p50_ms, 4),
                "p95_ms": round(timing.p95_ms, 4),
                "p99_ms": round(timing.p99_ms, 4),
                "environment": environment(),
                "time": now,
            }
        )
    return rows
