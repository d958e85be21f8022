"""From an image's bytes to its answer, free of transport: what runs in a slot, and how it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.protocols.form import Picture
from serve.settings import Settings
from zoo.artefact.card import Input
from zoo.artefact.decode import Room
from zoo.artefact.predictor import Prediction
from zoo.artefact.preprocess import FORMATS, decode_for, normalise, to_input_size
from zoo.base.errors import ImageError

__all__ = ["Row", "infer", "prediction_document", "prepare", "total_stages"]

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One image on its way, with the seconds it took so far."""

    values: Array
    """The network's input [C, H, W], later its logits [K]."""
    decode: float
    preprocess: float
    infer: float = 0.0


def prepare(picture: Picture, place: str, spec: Input, settings: Settings, room: Room) -> Row:
    """Decode, resize, crop and normalise one image.

    Raises:
        PocketzooError: what `room` raises; see :func:`zoo.artefact.decode.decode`.
        ImageError: it cannot be decoded or is too large; its message begins with `place`.
    """
    start = time.perf_counter()
    _, data = picture
    try:
        image = decode_for(data, spec, max_pixels=settings.max_pixels, formats=settings.formats or FORMATS, room=room)
        decoded = time.perf_counter()
        values = normalise(to_input_size(image, spec, max_pixels=settings.max_pixels), spec)
    except ImageError as error:
        raise type(error)(f"{place}: {error}" if place else str(error)) from error
    return Row(values=values, decode=decoded - start, preprocess=time.perf_counter() - decoded)


def infer(row: Row, logits: Callable[[Array], Array]) -> Row:
    """`row` with the logits of its input."""
    start = time.perf_counter()
    (values,) = logits(row.values[None])
    return Row(values=values, decode=row.decode, preprocess=row.preprocess, infer=time.perf_counter() - start)


def total_stages(rows: Sequence[Row]) -> dict[str, float]:
    """Milliseconds of decode, preprocess and infer, summed over the images."""
    return {stage: sum(getattr(row, stage) for row in rows) * 1e3 for stage in ("decode", "preprocess", "infer")}


def prediction_document(prediction: Prediction, *, abstain: float) -> dict[str, Any]:
    """One image's answer as `serve.protocols.schema.ImagePrediction` describes it."""
    return {
        "label": prediction.labels[0],
        "abstained": prediction.probabilities[0] < abstain,
        "probabilities": [
            {"label": label, "probability": probability}
            for label, probability in zip(prediction.labels, prediction.probabilities, strict=True)
        ],
    }
