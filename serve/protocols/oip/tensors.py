"""Tensors of the Open Inference Protocol v2, between arrays and what stands in a body.

Sources: the protocol's REST specification (github.com/kserve/open-inference-protocol, "Tensor Data") and Triton's
extension for binary tensor data (github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md).

A model has two inputs, of which a request sends one: preprocessed pixels (FP32, [B, C, H, W]) and encoded image files
(BYTES, [B] or [B, 1]; in JSON each is base64 text, because JSON has no bytes). B is the number of images, C, H and W
are the card's.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.artefact.card import Input

__all__ = ["Output", "Tensor", "described", "images_name", "input_names", "read_tensor", "write_answer"]

Tensor = npt.NDArray[np.float32] | tuple[bytes, ...]
"""Finite float32 [B, C, H, W], maybe a read-only view of the body; or B encoded image files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One tensor of an answer."""

    name: str
    shape: tuple[int, ...]
    values: npt.NDArray[np.float32] | Sequence[str]
    """FP32; or BYTES as texts in row-major order."""
    binary: bool
    """Whether its bytes follow the JSON."""


def images_name(spec: Input) -> str:
    """Name of the input that takes encoded image files."""
    return f"{spec.name}_bytes"


def input_names(spec: Input) -> str:
    """The names of both inputs, for a sentence."""
    return f"{spec.name!r} or {images_name(spec)!r}"


def read_tensor(tensor: Mapping[str, Any], raw: memoryview | None, spec: Input, settings: Settings) -> Tensor:
    """The tensor of a request.

    Args:
        tensor: its object in the request's JSON.
        raw: its binary data; None: the JSON has its `data`.
        spec: the input of the model's card.
        settings: of which max_images and max_image_bytes apply.

    Raises:
        Refused: 400 for what breaks the protocol, 413 for too much, 422 for a tensor that does not fit the model.
    """
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if name == spec.name:
        _expect_datatype(name, datatype, "FP32")
        return _pixels(tensor, raw, spec, settings)
    if name == images_name(spec):
        _expect_datatype(name, datatype, "BYTES")
        return _images(tensor, raw, settings)
    raise Refused(400, f"`inputs[0].name`: expected {input_names(spec)}, got {described(name)}")


def _expect_datatype(name: str, found: Any, expected: str) -> None:
    if found != expected:
        status = 422 if isinstance(found, str) else 400
        raise Refused(status, f"`inputs[0].datatype`: {name!r} takes {expected}, got {described(found)}")


def _batch(tensor: Mapping[str, Any], settings: Settings, *others: tuple[int, ...]) -> int:
    """The first dimension of the tensor's shape, whose other ones are one of `others`."""
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise Refused(400, f"`inputs[0].shape`: expected a list of sizes, got {described(shape)}")
    if not shape or tuple(shape[1:]) not in others or shape[0] < 1:
        expected = " or ".join(str([-1, *other]) for other in others)
        raise Refused(422, f"`inputs[0].shape`: expected {expected}, -1 for the number of images, got {shape!s:.80}")
    if shape[0] > settings.max_images:
        raise Refused(
            413, f"`inputs[0].shape`: {shape[0]!s:.20} images, at most {settings.max_images} (POCKETZOO_MAX_IMAGES)"
        )
    return int(shape[0])


def _pixels(
    tensor: Mapping[str, Any], raw: memoryview | None, spec: Input, settings: Settings
) -> npt.NDArray[np.float32]:
    shape = (_batch(tensor, settings, spec.shape), *spec.shape)
    if raw is None:
        values = _numbers_of(_flat(tensor["data"], shape, "numbers"))
    elif len(raw) != 4 * math.prod(shape):
        raise Refused(422, f"`inputs[0]`: FP32 of shape {list(shape)} has {4 * math.prod(shape)} bytes, got {len(raw)}")
    else:
        # A view; only where the JSON's length leaves it unaligned must it be copied.
        values = np.require(np.frombuffer(raw, dtype="<f4"), dtype=np.float32, requirements="A")
    if not np.isfinite(values).all():
        raise Refused(422, "`inputs[0]`: expected finite FP32 numbers, got NaN or infinity")
    return values.reshape(shape)


def _numbers_of(flat: list[Any]) -> npt.NDArray[np.float32]:
    # NumPy alone would take "1", true and null for numbers.
    if not set(map(type, flat)) <= {int, float}:
        raise Refused(400, "`inputs[0].data`: expected numbers only")
    try:
        with np.errstate(over="ignore"):
            return np.asarray(flat, dtype=np.float64).astype(np.float32)
    except OverflowError:
        raise Refused(422, "`inputs[0].data`: expected FP32 numbers, got one that is larger") from None


def _images(tensor: Mapping[str, Any], raw: memoryview | None, settings: Settings) -> tuple[bytes, ...]:
    count = _batch(tensor, settings, (), (1,))
    if raw is None:
        shape = tuple(tensor["shape"])
        images = tuple(map(_from_base64, _flat(tensor["data"], shape, "base64 texts")))
    else:
        images = _split(raw, count)
    for index, data in enumerate(images):
        if len(data) > settings.max_image_bytes:
            raise Refused(
                413,
                f"`inputs[0]`: image {index + 1} has {len(data)} bytes, at most {settings.max_image_bytes} are "
                "accepted (POCKETZOO_MAX_IMAGE_BYTES)",
            )
    return images


def _split(raw: memoryview, count: int) -> tuple[bytes, ...]:
    """Elements of a binary BYTES tensor: each is its length, four bytes little-endian, and its bytes."""
    images: list[bytes] = []
    place = 0
    while place < len(raw) and len(images) < count:
        size = int.from_bytes(raw[place : place + 4], "little") if len(raw) - place >= 4 else len(raw)
        place += 4 + size
        if place > len(raw):
            raise Refused(400, f"`inputs[0]`: the binary data ends inside element {len(images) + 1}")
        images.append(bytes(raw[place - size : place]))
    if len(images) != count or place != len(raw):
        more = " and more" if place < len(raw) else ""
        raise Refused(422, f"`inputs[0]`: `shape` says {count} elements, the binary data has {len(images)}{more}")
    return tuple(images)


def _from_base64(text: Any) -> bytes:
    if isinstance(text, str):
        try:
            return base64.b64decode(text, validate=True)
        except ValueError:
            pass
    raise Refused(400, "`inputs[0].data`: expected image files as base64 text (no line breaks); or send binary data")


def _flat(data: Any, shape: tuple[int, ...], kind: str) -> list[Any]:
    """`data`, flat or nested as `shape` is, as one list of as many elements."""
    count = math.prod(shape)
    if not isinstance(data, list):
        raise Refused(400, f"`inputs[0].data`: expected a list of {kind}, got {described(data)}")
    flat: list[Any] = data
    if flat and isinstance(flat[0], list):
        for depth, size in enumerate(shape[1:], start=1):
            rows = all(type(row) is list and len(row) == size for row in flat)
            if not rows or len(flat) != math.prod(shape[:depth]):
                raise Refused(422, f"`inputs[0].data`: expected {kind} nested as `shape` {list(shape)}, or a flat list")
            flat = list(itertools.chain.from_iterable(flat))
    if len(flat) != count:
        raise Refused(422, f"`inputs[0].data`: `shape` {list(shape)} wants {count} {kind}, got {len(flat)}")
    return flat


def described(value: Any) -> str:
    """What stands there, in a few words: large values are not repeated."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, str):
        value = value[:80]
    return f"{value!r}"[:80]


def write_answer(
    *, name: str, version: str, request_id: str | None, outputs: Sequence[Output]
) -> tuple[bytes, int | None]:
    """The body of an answer and, if binary tensors follow its JSON, the length of the JSON in bytes."""
    entries, chunks = [], []
    for output in outputs:
        datatype = "FP32" if isinstance(output.values, np.ndarray) else "BYTES"
        entry: dict[str, Any] = {"name": output.name, "datatype": datatype, "shape": output.shape}
        if output.binary:
            chunk = _bytes_of(output.values)
            entry["parameters"] = {"binary_data_size": len(chunk)}
            chunks.append(chunk)
        else:
            entry["data"] = _list_of(output.values)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": name, "model_version": version, "outputs": entries}
    if request_id is not None:
        document["id"] = request_id
    # Escaped, because an `id` may hold half of a surrogate pair, which has no bytes.
    header = json.dumps(document, separators=(",", ":"), allow_nan=False).encode("ascii")
    return (b"".join((header, *chunks)), len(header)) if chunks else (header, None)


def _list_of(values: npt.NDArray[np.float32] | Sequence[str]) -> list[Any]:
    return values.ravel().tolist() if isinstance(values, np.ndarray) else list(values)


def _bytes_of(values: npt.NDArray[np.float32] | Sequence[str]) -> bytes:
    if isinstance(values, np.ndarray):
        return np.ascontiguousarray(values, dtype="<f4").tobytes()
    texts = [text.encode() for text in values]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
