"""Answers made up from logits, to images of noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tests.zoo.factories import make_card, make_samples
from zoo.explain.predictions.answers import Answers


def answered(logits: npt.ArrayLike, truth: npt.ArrayLike | None = None, *, name: str = "tiny/model.onnx") -> Answers:
    """Answers [N, 3] of the labels cat, dog and hen."""
    array = np.asarray(logits, dtype=np.float32)
    return Answers(
        name=name,
        card=make_card(),
        source="tiny, validation split",
        samples=make_samples(len(array)),
        logits=array,
        truth=None if truth is None else np.asarray(truth, dtype=np.int64),
    )
