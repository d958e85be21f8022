"""The card of an ONNX file without the rest of it: what is read does not grow with the network.

Source: the encoding of protocol buffers (protobuf.dev/programming-guides/encoding) and onnx.proto's ModelProto.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from zoo.artefact.card import KEY, Card, from_json
from zoo.base.errors import ArtefactError

__all__ = ["glance_at_card"]

_GRAPH, _METADATA = 7, 14
"""Numbers of ModelProto's fields."""
_KEY, _VALUE = 1, 2
"""Of StringStringEntryProto, which its metadata is made of."""

_WITH_LENGTH = 2

_FIXED = {1: 8, 5: 4}
"""Wire type -> bytes of its values."""

_MOST_BYTES = 64 << 20
_MOST_FIELDS = 10_000


def glance_at_card(path: Path) -> Card:
    """The card of an ONNX file; that it agrees with the graph, and the graph with its digest, is not looked at.

    Raises:
        ArtefactError: not an ONNX file.
        CardError: no card, or a broken one.
    """
    try:
        with path.open("rb") as file:
            found = _metadata(file, path.stat().st_size)
    except FileNotFoundError:
        raise ArtefactError(f"no ONNX file at {path}; `pocketzoo export` writes one") from None
    except (ValueError, OSError) as error:
        raise ArtefactError(
            f"{path}: not a readable ONNX file ({error}); write it again with `pocketzoo export`"
        ) from error
    if found is None:
        raise ArtefactError(f"{path}: not an ONNX model: it has no graph")
    return from_json(found.get(KEY), where=str(path))


def _metadata(file: BinaryIO, size: int) -> dict[str, str] | None:
    """Keys and values of the model's metadata; None where it has no graph."""
    values: dict[str, str] = {}
    graph = False
    for field, length in _fields(file, size):
        graph |= field == _GRAPH
        if field == _METADATA and length <= _MOST_BYTES:
            entry = io.BytesIO(file.read(length))
            texts = {number: entry.read(count).decode() for number, count in _fields(entry, length)}
            values[texts.get(_KEY, "")] = texts.get(_VALUE, "")
    return values if graph else None


def _fields(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Number and length of each field that has a length; the file stands at its content, which need not be read."""
    for _ in range(_MOST_FIELDS):
        if file.tell() == size:
            return
        field, kind = divmod(_number(file), 8)
        if kind == 0:
            _number(file)
            continue
        length = _number(file) if kind == _WITH_LENGTH else _FIXED.get(kind)
        end = file.tell() + (length or 0)
        if length is None or end > size:
            raise ValueError("it is damaged, or ends in the middle")
        if kind == _WITH_LENGTH:
            yield field, length
        file.seek(end)
    raise ValueError(f"it has more than {_MOST_FIELDS} fields")


def _number(file: BinaryIO) -> int:
    found = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        found |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return found
    raise ValueError("it is damaged, or ends in the middle")
