"""Latency of artefacts: alternating processes, one session alive at a time, all in one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.artefact_fields import engine_fields, identity
from bench.rows import stamp
from zoo.artefact.clock import summarise
from zoo.artefact.environment import load_average
from zoo.artefact.latency import LatencyConfig, answering, latencies
from zoo.base.machine import cores

__all__ = ["measure_latency"]


def measure_latency(paths: Sequence[Path], config: LatencyConfig) -> list[dict[str, Any]]:
    """One complete row per ONNX file.

    Raises:
        PocketzooError: a measuring process failed.
    """
    found: dict[Path, dict[str, Any]] = {}
    for path in paths:
        predictor = answering(path, config)
        found[path] = identity(path, predictor.card) | engine_fields(predictor)
    # The last one's threads are gone before the first measurement.
    del predictor
    how = dataclasses.asdict(config) | {"threads": config.threads or cores(), "load_average": load_average()}
    timed = latencies(paths, config, engines={path: found[path]["engine"] for path in paths})
    common = how | stamp()
    return [common | found[path] | dataclasses.asdict(summarise(timed[path])) for path in paths]
