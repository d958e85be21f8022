"""The golden self-check: each engine repeats the answer that it gave to an image that anyone can draw again.

`B` is the batch size, `K` the number of labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo.artefact.card import Card, Golden
from zoo.artefact.engines.runtimes import REFERENCE, Engine
from zoo.artefact.preprocess import GOLDEN_RULE, golden_image, preprocess
from zoo.base.errors import ArtefactError, CheckError

__all__ = ["add_engine", "answer_of", "candidates", "check_golden", "draw_golden", "softmax", "tolerance"]

_CANDIDATES = 16

Floats = npt.NDArray[np.float32]
Classifier = Callable[[Floats], Floats]


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Probabilities float32 [B, K] of logits [B, K] divided by `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    powers = np.exp(scaled)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float32)


def answer_of(golden: Golden, engine: str) -> tuple[float, ...] | None:
    """The probabilities, one per label, that an engine has to repeat; None where none were recorded."""
    return golden.probabilities if engine == REFERENCE else golden.engines.get(engine)


def tolerance(card: Card, engine: str = REFERENCE) -> float:
    """How far golden probabilities may be off: INT8 and 16-bit kernels differ between processors, FP32 ones hardly.

    Of a thousand labels none may be probable for a drawn image, so that a fixed number would let everything pass.
    """
    precision = "bfloat16" if engine.endswith("-bf16") else card.inform.precision
    most = {"int8": 0.03, "bfloat16": 0.03, "float16": 0.01}.get(precision, 1e-3)
    answer = card.use.golden and answer_of(card.use.golden, engine)
    return min(most, max(answer) / 4) if answer else most


def candidates(card: Card) -> Floats:
    """The images of which one becomes the golden one, preprocessed: float32 [16, C, H, W]."""
    return np.stack([preprocess(golden_image(seed), card.use.input) for seed in range(_CANDIDATES)])


def draw_golden(logits: Classifier, card: Card) -> Golden:
    """Record ONNX Runtime's answer to the golden image, of several, on which the model is most decided.

    An image near a decision boundary would fail the check on another instruction set without anything being wrong.
    """
    found = np.concatenate([logits(image[None]) for image in candidates(card)])
    probabilities = softmax(found, card.use.temperature)
    best_two = np.sort(probabilities, axis=1)[:, -2:]
    seed = int(np.argmax(best_two[:, 1] - best_two[:, 0]))
    return Golden(rule=GOLDEN_RULE, seed=seed, probabilities=_stored(probabilities[seed]))


def add_engine(golden: Golden, engine: Engine, card: Card) -> Golden:
    """The self-check with another engine's own answer to the same image."""
    image = preprocess(golden_image(golden.seed), card.use.input)[None]
    answer = _stored(softmax(engine.logits(image), card.use.temperature)[0])
    return dataclasses.replace(golden, engines={**golden.engines, engine.name: answer})


def check_golden(engine: Engine, card: Card, path: Path) -> None:
    """Let an engine repeat its golden answer.

    Raises:
        ArtefactError: the card has none of this engine.
        CheckError: it answers something else.
    """
    golden = card.use.golden
    if golden is None:
        raise ArtefactError(f"{path}: its card has no golden self-check; write it again with `pocketzoo export`")
    if golden.rule != GOLDEN_RULE:
        raise CheckError(f"{path}: golden rule {golden.rule!r} is unknown, this version draws {GOLDEN_RULE!r}")
    answer = answer_of(golden, engine.name)
    if answer is None:
        raise ArtefactError(f"{path}: its card has no golden answer of {engine.name}; export it again here")
    image = preprocess(golden_image(golden.seed), card.use.input)[None]
    (found,) = softmax(engine.logits(image), card.use.temperature)
    expected = np.asarray(answer)
    worst = float(np.abs(found - expected).max())
    labels, allowed = card.use.labels, tolerance(card, engine.name)
    second, first = np.sort(expected)[-2:]
    # Where two labels are about equally probable, rounding decides which one is first.
    other = first - second > allowed and found.argmax() != expected.argmax()
    if not worst <= allowed or other:
        raise CheckError(
            f"{path}: golden self-check failed: expected {labels[int(expected.argmax())]!r} within {allowed:.2g}, got "
            f"{labels[int(found.argmax())]!r}, off by {worst:.2g}; {engine.name} on this machine computes something "
            "else than where the file was written; export it again here"
        )


def _stored(probabilities: Floats) -> tuple[float, ...]:
    return tuple(round(float(p), 6) for p in probabilities)
