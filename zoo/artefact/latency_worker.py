"""One process of a latency measurement: load one artefact, time it, print the durations as JSON.

Run by zoo.artefact.latency as `python -m zoo.artefact.latency_worker FILE ENGINE BATCH THREADS SECONDS WARMUP`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from zoo.artefact.clock import sample_ms
from zoo.artefact.predictor import Predictor

__all__ = ["durations"]


def durations(path: Path, *, engine: str, batch: int, threads: int, seconds: float, warmup: int) -> list[float]:
    """Milliseconds of each inference of `batch` random images."""
    # The golden answer says nothing about speed, and a graph that is timed before it is published has none yet.
    predictor = Predictor(path, threads=threads, check=False, engine=engine)
    shape = (batch, *predictor.card.use.input.shape)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    return sample_ms(lambda: predictor.logits(images), seconds=seconds, warmup=warmup)


if __name__ == "__main__":
    file, engine_, batch_, threads_, seconds_, warmup_ = sys.argv[1:]
    samples = durations(
        Path(file),
        engine=engine_,
        batch=int(batch_),
        threads=int(threads_),
        seconds=float(seconds_),
        warmup=int(warmup_),
    )
    print(json.dumps({"samples_ms": [round(sample, 5) for sample in samples]}))
