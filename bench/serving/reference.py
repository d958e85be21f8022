"""What the server is compared with: the same pipeline in a process without any server.

Run as `python -m bench.serving.reference FILE IMAGE THREADS SESSION_THREADS`. It loads one session per Python thread,
says `{"ready": ...}`, and then measures once for every line of JSON on its standard input, a :class:`Turn`. Between
turns it waits for the next line, so that it takes nothing from the processes whose turn it is.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import preprocess

__all__ = ["Turn", "measure"]


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


def _main() -> None:
    file, image, threads, session_threads = sys.argv[1:]
    data = Path(image).read_bytes()
    predictors = [Predictor(Path(file), threads=int(session_threads)) for _ in range(int(threads))]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(predictors, data, Turn(**json.loads(line)))), flush=True)


if __name__ == "__main__":
    _main()
