"""Latency of every artefact; collected by `pytest --benchmark` only (see bench.plugin)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.plugin import timing_row
from zoo.machine import cores
from zoo.predictor import Predictor

WARMUP, ROUNDS = 20, 200


@pytest.mark.parametrize("batch", [1, 8])
def test_latency(benchmark: Any, artefact: Path, batch: int) -> None:
    benchmark.group = f"batch {batch}, {cores()} threads"
    predictor = Predictor(artefact)
    shape = (batch, *predictor.card.use.input.shape)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    logits = benchmark.pedantic(predictor.logits, (images,), rounds=ROUNDS, warmup_rounds=WARMUP, iterations=1)
    assert logits.shape == (batch, len(predictor.card.use.labels))
    durations = benchmark.stats.stats.data
    assert len(durations) == ROUNDS
    timing_row(artefact, predictor.digest, durations, batch=batch, threads=cores(), warmup=WARMUP)
