"""From an image's bytes to its answer, free of transport: what runs in a slot, and the memory that it may take.

Small images are decoded in any slot, large ones beside the slots and within a budget. So a few bytes of a file that
become half a gigabyte take neither the worker's memory nor the slots of others.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.protocols.form import Picture
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.artefact.card import Input
from zoo.artefact.decode import Room
from zoo.artefact.predictor import Prediction
from zoo.artefact.preprocess import FORMATS, decode_for, normalise, to_input_size
from zoo.base.errors import ImageError, ImageSizeError, PocketzooError
from zoo.base.machine import available_memory

__all__ = ["SMALL_BYTES", "Large", "Memory", "Row", "prediction_document", "prepare"]

Array = npt.NDArray[np.float32]

SMALL_BYTES = 32 << 20
"""What an image may take in a slot: about three megapixels."""

_MOST_BYTES = 4 << 30
_MB = 1e6


class Large(PocketzooError):  # noqa: N818  # nothing is wrong with it
    """An image takes more memory than a slot has; it is decoded again where there is more."""


class Memory:
    """The bytes that one worker may decode in. Threads call its methods."""

    def __init__(self, settings: Settings) -> None:
        """`settings.decode_bytes`, of which each worker has its part, and of this each slot a small one."""
        whole = (settings.decode_bytes or min(_MOST_BYTES, available_memory() // 2)) // settings.workers
        self._small = min(SMALL_BYTES, whole // (2 * settings.slots))
        self._most = self._free = whole - settings.slots * self._small
        self._seconds = settings.timeout_seconds
        self._turn = threading.Lock()
        self._changed = threading.Condition()
        self._mine = threading.local()

    def take(self, count: int, what: str) -> None:
        """Make sure of `count` bytes for decoding `what`.

        Raises:
            Large: more than a slot has, outside of :meth:`large`.
            ImageSizeError: more than there are.
            Refused: 503 if others do not give them back in time.
        """
        if count <= self._small:
            return
        if count > self._most:
            raise ImageSizeError(
                f"the {what} takes up to {count / _MB:.0f} MB of memory to decode, "
                f"at most {self._most / _MB:.0f} MB are there (POCKETZOO_DECODE_BYTES); save it smaller, or as JPEG"
            )
        if not hasattr(self._mine, "held"):
            raise Large
        # Whoever waits keeps the others waiting, or the largest would never have enough.
        with self._turn, self._changed:
            if not self._changed.wait_for(lambda: self._free >= count, self._seconds):
                raise Refused(503, f"other images are being decoded in {self._most / _MB:.0f} MB of memory; try again")
            self._free -= count
        self._mine.held += count

    @contextlib.contextmanager
    def large(self) -> Iterator[None]:
        """Let this thread take what a slot has not; it is given back after the block."""
        self._mine.held = 0
        try:
            yield
        finally:
            with self._changed:
                self._free += self._mine.held
                self._changed.notify_all()
            del self._mine.held


@dataclass(slots=True, kw_only=True)
class Row:
    """One image on its way, with the seconds it took so far."""

    values: Array
    """The network's input [C, H, W], later its logits [K]."""
    decode: float
    preprocess: float
    infer: float = 0.0

    def infer_with(self, logits: Callable[[Array], Array]) -> None:
        """Let the logits of its input take its place."""
        start = time.perf_counter()
        (self.values,) = logits(self.values[None])
        self.infer = time.perf_counter() - start


def prepare(picture: Picture, place: str, spec: Input, settings: Settings, room: Room) -> Row:
    """Decode, resize, crop and normalise one image.

    Raises:
        PocketzooError: what `room` raises; see :func:`zoo.artefact.decode.decode`.
        ImageError: it cannot be decoded or is too large; its message begins with `place`.
    """
    start = time.perf_counter()
    _, data = picture
    formats = settings.formats or FORMATS
    try:
        image = decode_for(data, spec, max_pixels=settings.max_pixels, formats=formats, room=room)
        decoded = time.perf_counter()
        values = normalise(to_input_size(image, spec, max_pixels=settings.max_pixels), spec)
    except ImageError as error:
        raise type(error)(f"{place}: {error}" if place else str(error)) from error
    return Row(values=values, decode=decoded - start, preprocess=time.perf_counter() - decoded)


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
