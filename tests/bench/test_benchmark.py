"""Latency and accuracy of every artefact; collected by `pytest --benchmark` only (see bench.pytest_plugin)."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.accuracy import measure_accuracy
from bench.pytest_plugin import accuracy_row, timing_row
from bench.runtimes.families import families
from zoo.artefact.clock import sample_ms
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError
from zoo.training.workspace import notes_for

WARMUP, LEAST, MOST, SECONDS = 5, 20, 200, 1.5


@pytest.mark.parametrize("batch", [1, 8], ids=lambda batch: f"batch {batch}")
def test_latency(benchmark: Any, artefact: Path, batch: int, threads: int) -> None:
    model = families([artefact])[0][0].name
    benchmark.group = f"{model}, threads {threads}, batch {batch}"
    predictor = Predictor(artefact, threads=threads)
    shape = (batch, *predictor.card.use.input.shape)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    took = statistics.median(sample_ms(lambda: predictor.logits(images), seconds=0, warmup=0, at_least=WARMUP))
    rounds = min(MOST, max(LEAST, round(1000 * SECONDS / took)))
    logits = benchmark.pedantic(predictor.logits, (images,), rounds=rounds, iterations=1)
    assert logits.shape == (batch, len(predictor.card.use.labels))
    durations = benchmark.stats.stats.data
    assert len(durations) == rounds
    timing = timing_row(predictor, durations, model=model, batch=batch, threads=threads, warmup=WARMUP)
    benchmark.extra_info.update({"p50_ms": timing.p50_ms, "p95_ms": timing.p95_ms, "p99_ms": timing.p99_ms})


def test_accuracy(artefact: Path, pytestconfig: pytest.Config) -> None:
    split = pytestconfig.getoption("--benchmark-split")
    try:
        notes = notes_for(artefact.parent, None)
    except ArtefactError as error:
        pytest.skip(str(error))
    dataset = (notes.test if split == "test" else notes.data).open_for(read_card(artefact))
    row = measure_accuracy(artefact, dataset, split=split)
    assert row["n"] == len(dataset.splits[split])
    accuracy_row(row)
