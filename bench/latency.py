"""Latency of artefacts: alternating processes, one session alive at a time, all in one run."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.environment import environment
from bench.identity import identity
from zoo.clock import summarise
from zoo.latency import LatencyConfig, turns
from zoo.machine import cores
from zoo.progress import track

__all__ = ["measure_latency"]


def measure_latency(paths: Sequence[Path], config: LatencyConfig) -> list[dict[str, Any]]:
    """One complete row per ONNX file; percentiles over the durations of all rounds.

    Raises:
        PocketzooError: a measuring process failed.
    """
    threads = config.threads or cores()
    found = {path: identity(path) for path in paths}
    samples: dict[Path, list[float]] = {path: [] for path in paths}
    total = len(paths) * config.rounds
    for path, durations in track(turns(paths, config), total=total, description="Measuring latency"):
        samples[path] += durations
    run = uuid.uuid4().hex
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows = []
    for path in paths:
        timing = summarise(samples[path])
        rows.append(
            {
                **found[path],
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
