"""Tensors of the Open Inference Protocol v2, between arrays and what stands in a body.

Sources: the protocol's REST specification (github.com/kserve/open-inference-protocol, "Tensor Data") and Triton's
extension for binary tensor data (github.com/triton-inference-server/server, docs/protocol/extension_binary_data.md).

A model has two inputs, of which a request sends one: preprocessed pixels (FP32, [B, C, H, W]) and encoded image files
(BYTES, [B] or [B, 1]; in JSON each is base64 text, because JSON has no bytes). B is the number of images, C, H and W
are the card's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import UNSET, Meta, Raw, UnsetType

from serve.bodies import check_images
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.artefact.card import Input

__all__ = [
    "Datatype",
    "InferInput",
    "Output",
    "Tensor",
    "images_name",
    "malformed",
    "read_tensor",
    "write_answer",
]

T = TypeVar("T")

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]


class InputParameters(msgspec.Struct, frozen=True):
    """How a tensor comes; others are ignored."""

    binary_data_size: (
        Annotated[int, Meta(description="bytes of the tensor behind the JSON, in place of `data`")] | None
    ) = None
    shared_memory_region: Annotated[Raw, Meta(description="not supported")] | UnsetType = UNSET


class InferInput(msgspec.Struct, frozen=True):
    """One tensor of a request."""

    name: str
    datatype: Datatype
    shape: list[Annotated[int, Meta(ge=0)]]
    parameters: InputParameters | None = None
    data: (
        Annotated[
            Raw,
            Meta(
                description="flat in row-major order, or nested as the shape says",
                extra_json_schema={"type": "array"},
            ),
        ]
        | UnsetType
    ) = UNSET


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


def malformed(error: Exception, place: str = "") -> Refused:
    """What msgspec says about a document, or about the part of it at `place`, as a refusal."""
    if not isinstance(error, msgspec.ValidationError):
        return Refused(400, f"{f'`{place}`: ' if place else ''}the request is not valid JSON: {str(error)!r:.120}")
    what, _, path = str(error).partition(" - at `$")
    where = place + path.rstrip("`")
    sentence = f"{what[:1].lower()}{what[1:]}; GET /docs shows what is expected"
    return Refused(400, f"`{where.removeprefix('.')}`: {sentence}" if where else f"the request: {sentence}")


def read_tensor(tensor: InferInput, raw: memoryview | None, spec: Input, settings: Settings) -> Tensor:
    """The tensor of a request.

    Args:
        tensor: its object in the request's JSON; it has `data` if there is no `raw`.
        raw: its binary data; None: the JSON has its `data`.
        spec: the input of the model's card.
        settings: of which max_images and max_image_bytes apply.

    Raises:
        Refused: 400 for what breaks the protocol, 413 for too much, 422 for a tensor that does not fit the model.
    """
    if tensor.name == spec.name:
        _expect_datatype(tensor, "FP32")
        return _pixels(tensor, raw, spec, settings)
    if tensor.name == images_name(spec):
        _expect_datatype(tensor, "BYTES")
        return _images(tensor, raw, settings)
    names = f"{spec.name!r} or {images_name(spec)!r}"
    raise Refused(400, f"`inputs[0].name`: expected {names}, got {tensor.name[:80]!r:.90}")


def _expect_datatype(tensor: InferInput, expected: str) -> None:
    if tensor.datatype != expected:
        raise Refused(422, f"`inputs[0].datatype`: {tensor.name!r} takes {expected}, got {tensor.datatype!r}")


def _batch(tensor: InferInput, settings: Settings, *others: tuple[int, ...]) -> int:
    """The first dimension of the tensor's shape, whose other ones are one of `others`."""
    shape = tensor.shape
    if not shape or tuple(shape[1:]) not in others or shape[0] < 1:
        expected = " or ".join(str([-1, *other]) for other in others)
        raise Refused(422, f"`inputs[0].shape`: expected {expected}, -1 for the number of images, got {shape!s:.80}")
    if shape[0] > settings.max_images:
        raise Refused(
            413, f"`inputs[0].shape`: {shape[0]!s:.20} images, at most {settings.max_images} (POCKETZOO_MAX_IMAGES)"
        )
    return shape[0]


def _pixels(tensor: InferInput, raw: memoryview | None, spec: Input, settings: Settings) -> npt.NDArray[np.float32]:
    shape = (_batch(tensor, settings, spec.shape), *spec.shape)
    if raw is None:
        values = _numbers(tensor, shape)
    elif len(raw) != 4 * math.prod(shape):
        raise Refused(422, f"`inputs[0]`: FP32 of shape {list(shape)} has {4 * math.prod(shape)} bytes, got {len(raw)}")
    else:
        # A view; only where the JSON's length leaves it unaligned must it be copied.
        values = np.require(np.frombuffer(raw, dtype="<f4"), dtype=np.float32, requirements="A")
    if not np.isfinite(values).all():
        raise Refused(422, "`inputs[0]`: expected finite FP32 numbers, got NaN or infinity")
    return values.reshape(shape)


_flat_numbers = msgspec.json.Decoder(list[float])
_nested_numbers = msgspec.json.Decoder(list[list[list[list[float]]]])
_flat_files = msgspec.json.Decoder(list[bytes])
_nested_files = msgspec.json.Decoder(list[list[bytes]])
_NESTED = re.compile(rb"\s*\[\s*\[")


def _numbers(tensor: InferInput, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    if _is_nested(tensor):
        try:
            values = np.asarray(_data(tensor, _nested_numbers), dtype=np.float64)
        except ValueError:  # rows of different lengths
            values = np.empty(0)
        if values.shape != shape:
            raise _not_nested("numbers", shape)
    else:
        values = np.asarray(_data(tensor, _flat_numbers), dtype=np.float64)
        if values.size != math.prod(shape):
            raise _not_so_many("numbers", values.size, shape)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _files(tensor: InferInput) -> tuple[bytes, ...]:
    shape = tuple(tensor.shape)
    if _is_nested(tensor):
        rows = _data(tensor, _nested_files)
        if len(shape) != 2 or len(rows) != shape[0] or any(len(row) != 1 for row in rows):
            raise _not_nested("base64 texts", shape)
        return tuple(row[0] for row in rows)
    files = _data(tensor, _flat_files)
    if len(files) != shape[0]:
        raise _not_so_many("base64 texts", len(files), shape)
    return tuple(files)


def _is_nested(tensor: InferInput) -> bool:
    return tensor.data is not UNSET and _NESTED.match(tensor.data) is not None


def _data(tensor: InferInput, decoder: msgspec.json.Decoder[T]) -> T:
    assert tensor.data is not UNSET
    try:
        return decoder.decode(tensor.data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(error, "inputs[0].data") from error


def _not_nested(kind: str, shape: tuple[int, ...]) -> Refused:
    return Refused(422, f"`inputs[0].data`: expected {kind} nested as `shape` {list(shape)}, or a flat list")


def _not_so_many(kind: str, found: int, shape: tuple[int, ...]) -> Refused:
    return Refused(422, f"`inputs[0].data`: `shape` {list(shape)} wants {math.prod(shape)} {kind}, got {found}")


def _images(tensor: InferInput, raw: memoryview | None, settings: Settings) -> tuple[bytes, ...]:
    count = _batch(tensor, settings, (), (1,))
    images = _files(tensor) if raw is None else _split(raw, count)
    check_images([len(data) for data in images], settings, lambda index: f"`inputs[0]`: image {index + 1}")
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
