"""What the server is compared with: the same pipeline without any server, run by bench.serving.reference_processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import preprocess
from zoo.base.interrupt import end_with_parent

__all__ = ["Turn", "load", "measure", "take"]

_predictors: list[Predictor]
_image: bytes


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One measurement."""

    what: str
    """`image`: decode, preprocess, infer, labels; `tensor`: infer and softmax only."""
    seconds: float
    warmup: float


def measure(predictors: list[Predictor], image: bytes, turn: Turn) -> dict[str, Any]:
    """Run the pipeline in one thread per predictor: images per second, and each one's milliseconds."""
    begin = time.perf_counter() + turn.warmup
    end = begin + turn.seconds

    def work(predictor: Predictor) -> list[tuple[float, float]]:
        step, ended = _step(predictor, image, turn.what), []
        before = time.perf_counter()
        while before < end:
            step()
            after = time.perf_counter()
            ended.append((before, after))
            before = after
        return ended

    with ThreadPoolExecutor(len(predictors)) as pool:
        ended = [step for steps in pool.map(work, predictors) for step in steps]
    return {
        "rate": sum(begin <= after <= end for _, after in ended) / turn.seconds,
        "samples_ms": [round((after - before) * 1e3, 4) for before, after in ended if before >= begin],
    }


def _step(predictor: Predictor, image: bytes, what: str) -> Callable[[], object]:
    if what == "image":
        return lambda: predictor.predict([image])
    tensor = np.ascontiguousarray(preprocess(image, predictor.card.use.input)[None])
    return lambda: predictor.probabilities(tensor)


def load(file: Path, image: Path, engine: str, threads: int, session_threads: int) -> None:
    """Load, in a process of its own, one session per Python thread for the turns that follow."""
    global _predictors, _image
    end_with_parent()
    _predictors = [Predictor(file, threads=session_threads, engine=engine) for _ in range(threads)]
    _image = image.read_bytes()


def take(turn: Turn) -> dict[str, Any]:
    """Measure once with what :func:`load` has loaded."""
    return measure(_predictors, _image, turn)
