"""Requests of the Open Inference Protocol v2: the bytes of a body to what they ask for.

Sources: the protocol's REST specification (github.com/kserve/open-inference-protocol, "Inference Request JSON Object")
and Triton's extensions for binary tensor data and classification (github.com/triton-inference-server/server,
docs/protocol). A body is one JSON object; tensors are in it, or their bytes follow it.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serve.protocols.http import Refused
from serve.protocols.oip.tensors import Tensor, described, input_names, read_tensor
from serve.settings import Settings
from zoo.artefact.card import Input

__all__ = ["InferRequest", "Wanted", "inflate", "read_request"]

_MAX_JSON_VALUES = 1 << 20
"""Elements of one JSON document: a million takes 0.1 s, in which the process does nothing else, and 60 MB."""
_MAX_ID = 1024

_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
"""zlib's name for the containers that RFC 9110, section 8.4.1, calls so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One output that a request asks for."""

    name: str
    classes: int = 0
    """Triton's `classification`: this many classes as text in place of the tensor; 0: the tensor."""
    binary: bool = False
    """Whether its bytes follow the answer's JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InferRequest:
    """One inference request."""

    id: str | None
    """The client's name for it, which the answer repeats."""
    tensor: Tensor
    outputs: tuple[Wanted, ...]
    """In the order of the request; empty: the client leaves the choice to the server."""
    binary: bool
    """Whether outputs are binary unless they say otherwise (`binary_data_output`)."""


def inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Decompress a body whose Content-Encoding is `encoding` (lower case), to at most `limit` bytes.

    Raises:
        Refused: 413 if it becomes larger, 415 for another encoding than gzip and deflate, 400 if it is broken.
    """
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise Refused(415, f"Content-Encoding: expected gzip, deflate or none, got {encoding.decode('latin-1')!r:.80}")
    stream = zlib.decompressobj(bits)
    try:
        found = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refused(400, f"the body is not what its Content-Encoding says: {error}") from error
    if len(found) > limit:
        raise Refused(413, f"the decompressed body has more than {limit} bytes (POCKETZOO_MAX_REQUEST_BYTES)")
    if not stream.eof or stream.unused_data:
        raise Refused(400, "the compressed body is cut off, or more bytes follow it")
    return found


def read_request(body: bytes, header_length: bytes | None, spec: Input, settings: Settings) -> InferRequest:
    """Read the body of an inference request.

    Args:
        body: the whole body, decompressed.
        header_length: the header Inference-Header-Content-Length, the bytes of the JSON; None: all of the body.
        spec: the input of the model's card.
        settings: of which max_images and max_image_bytes apply.

    Raises:
        Refused: 400 for what breaks the protocol, 413 for too much, 422 for a tensor that does not fit the model.
    """
    length = _header_length(header_length, len(body))
    # Nested data has a bracket per row, of which rows of one number have as many as numbers.
    most = max(_MAX_JSON_VALUES, 3 * math.prod(spec.shape))
    document = _parse(body if length == len(body) else body[:length], most=most)
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(400, f"`inputs`: expected a list of one tensor, {input_names(spec)}, got {described(inputs)}")
    # What is asked for is cheap to check, what is sent is not.
    binary = _flag(_parameters(document, "parameters"), "binary_data_output", default=False, place="parameters")
    outputs, name = _wanted(document, binary), _id(document.get("id"))
    raw = _raw(inputs[0], body, length, binary=header_length is not None)
    return InferRequest(id=name, tensor=read_tensor(inputs[0], raw, spec, settings), outputs=outputs, binary=binary)


def _header_length(header: bytes | None, total: int) -> int:
    if header is None:
        return total
    if not header.isdigit() or len(header) > 15 or int(header) > total:
        raise Refused(
            400,
            f"Inference-Header-Content-Length: expected the bytes of the JSON, at most the body's {total}, "
            f"got {header.decode('latin-1')!r:.40}",
        )
    return int(header)


def _parse(text: bytes, *, most: int) -> Mapping[str, Any]:
    # Counted first: a short text, `[],[],...`, makes objects of thirty times its size.
    values = text.count(b",") + text.count(b"[") + text.count(b"{")
    if values > most:
        raise Refused(
            413,
            f"the JSON has about {values} values, at most {most} are read; send the tensor as binary data "
            "(`binary_data_size`), which is faster too",
        )
    try:
        document = json.loads(str(text, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the request is not valid JSON: {str(error)!r:.120}") from error
    if not isinstance(document, dict):
        raise Refused(400, f"expected a JSON object with `inputs`, got {described(document)}")
    return document


def _id(value: Any) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= _MAX_ID):
        return value
    raise Refused(400, f"`id`: expected a text of at most {_MAX_ID} characters, got {described(value)}")


def _raw(tensor: Mapping[str, Any], body: bytes, length: int, *, binary: bool) -> memoryview | None:
    """The bytes of the tensor behind the JSON; None where the JSON has its `data`."""
    parameters = _parameters(tensor, "inputs[0].parameters")
    if "shared_memory_region" in parameters:
        raise Refused(400, "`inputs[0]`: shared memory is not supported; send `data` or binary data")
    size, rest = parameters.get("binary_data_size"), len(body) - length
    if size is None:
        if "data" not in tensor:
            raise Refused(400, "`inputs[0]`: expected `data`, or binary data with the parameter `binary_data_size`")
        if rest:
            raise Refused(400, f"{rest} bytes follow the JSON, but no input has a `binary_data_size`")
        return None
    if "data" in tensor:
        raise Refused(400, "`inputs[0]`: expected `data` or `binary_data_size`, got both")
    if not binary:
        raise Refused(400, "binary data needs the header Inference-Header-Content-Length, the bytes of the JSON")
    if type(size) is not int or size != rest:
        field = "`inputs[0].parameters.binary_data_size`"
        raise Refused(400, f"{field}: {rest} bytes follow the JSON, got {described(size)}")
    return memoryview(body)[length:]


def _wanted(document: Mapping[str, Any], binary: bool) -> tuple[Wanted, ...]:
    entries = document.get("outputs")
    if entries is None:
        return ()
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise Refused(400, f"`outputs`: expected a list of objects with a `name`, got {described(entries)}")
    found = tuple(_want(entry, f"outputs[{index}]", binary) for index, entry in enumerate(entries))
    if len({wanted.name for wanted in found}) < len(found):
        raise Refused(400, "`outputs`: the same name is there twice")
    return found


def _want(entry: Mapping[str, Any], place: str, binary: bool) -> Wanted:
    name = entry.get("name")
    if not isinstance(name, str):
        raise Refused(400, f"`{place}.name`: expected a text, got {described(name)}")
    parameters = _parameters(entry, f"{place}.parameters")
    if "shared_memory_region" in parameters:
        raise Refused(400, f"`{place}`: shared memory is not supported; leave the parameter out")
    classes = parameters.get("classification", 0)
    if type(classes) is not int or (classes < 1 and "classification" in parameters):
        field = f"`{place}.parameters.classification`"
        raise Refused(400, f"{field}: expected a number of classes, 1 or more, got {described(classes)}")
    flag = _flag(parameters, "binary_data", default=binary, place=f"{place}.parameters")
    return Wanted(name=name, classes=classes, binary=flag)


def _parameters(owner: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    found = owner.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Refused(400, f"`{place}`: expected an object, got {described(found)}")
    return found


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool, place: str) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Refused(400, f"`{place}.{name}`: expected true or false, got {described(value)}")
    return value
