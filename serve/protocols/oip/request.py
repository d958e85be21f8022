"""Requests of the Open Inference Protocol v2: the bytes of a body to what they ask for.

Sources: the protocol's REST specification (github.com/kserve/open-inference-protocol, "Inference Request JSON Object")
and Triton's extensions for binary tensor data and classification (github.com/triton-inference-server/server,
docs/protocol). A body is one JSON object; tensors are in it, or their bytes follow it.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from serve.bodies import AtMost
from serve.protocols.http import Refused
from serve.protocols.oip.tensors import InferInput, Tensor, malformed, read_tensor
from serve.settings import Settings
from zoo.artefact.card import Input

__all__ = [
    "Asked",
    "IndexRequest",
    "InferOutputRequest",
    "InferRequest",
    "Wanted",
    "at_most",
    "inflate",
    "read_request",
]

_MAX_JSON_VALUES = 1 << 20
"""Elements of one JSON document, where the largest request to the model has more: they take memory, 60 MB."""
_SPARE_JSON_VALUES = 4096
"""Elements of it beside the tensor's: names, parameters and whatever a client adds."""

_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
"""zlib's name for the containers that RFC 9110, section 8.4.1, calls so."""


class OutputParameters(msgspec.Struct, frozen=True):
    """How an output is wanted; others are ignored."""

    classification: (
        Annotated[int, Meta(ge=1, description="so many of the most probable labels as text, in place of the tensor")]
        | UnsetType
    ) = UNSET
    binary_data: Annotated[bool, Meta(description="the tensor as bytes behind the JSON")] | UnsetType = UNSET
    shared_memory_region: Annotated[Raw, Meta(description="not supported")] | UnsetType = UNSET


class InferOutputRequest(msgspec.Struct, frozen=True):
    """One tensor that is asked for."""

    name: Annotated[str, Meta(description="probabilities, logits or label")]
    parameters: OutputParameters | None = None


class RequestParameters(msgspec.Struct, frozen=True):
    """What holds for the whole request; others are ignored."""

    binary_data_output: Annotated[bool, Meta(description="whether outputs are binary, unless they say otherwise")] = (
        False
    )


# Of a request only the outputs may be any number of objects: they are decoded when they are known to be few.
_OUTPUTS = {"type": ["array", "null"], "items": {"$ref": "#/components/schemas/InferOutputRequest"}}
_Outputs = Annotated[Raw, Meta(description="default: probabilities and label", extra_json_schema=_OUTPUTS)]
_MAX_OUTPUTS_BYTES = 1 << 14
_decode_outputs = msgspec.json.Decoder(list[InferOutputRequest] | None).decode


class InferRequest(msgspec.Struct, frozen=True):
    """The body of POST /v2/models/{name}/infer."""

    inputs: Annotated[tuple[InferInput], Meta(description="one tensor")]
    id: Annotated[str, Meta(max_length=1024, description="comes back in the answer")] | None = None
    parameters: RequestParameters | None = None
    outputs: _Outputs | UnsetType = UNSET


_decode = msgspec.json.Decoder(InferRequest).decode
_NOT_ONE = "Expected `array` of length 1 - at `$.inputs`"


class IndexRequest(msgspec.Struct, frozen=True):
    """The body of POST /v2/repository/index, which may be left out."""

    ready: Annotated[bool, Meta(description="leave out the others")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One output that a request asks for."""

    name: str
    classes: int = 0
    """Triton's `classification`: this many classes as text in place of the tensor; 0: the tensor."""
    binary: bool = False
    """Whether its bytes follow the answer's JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One inference request, read and checked."""

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


def read_request(body: bytes, header_length: bytes | None, spec: Input, settings: Settings) -> Asked:
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
    text = body if length == len(body) else body[:length]
    at_most(spec, settings)(text)
    try:
        document = _decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        if str(error) == _NOT_ONE:
            raise Refused(400, "`inputs`: expected one tensor, the model's only input; GET /docs shows it") from error
        raise malformed(error) from error
    (tensor,) = document.inputs
    # What is asked for is cheap to check, what is sent is not.
    binary = document.parameters is not None and document.parameters.binary_data_output
    outputs = _wanted(document.outputs, binary)
    raw = _raw(tensor, body, length, binary=header_length is not None)
    return Asked(id=document.id, tensor=read_tensor(tensor, raw, spec, settings), outputs=outputs, binary=binary)


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


def at_most(spec: Input, settings: Settings) -> AtMost:
    """What refuses a document of more values than a request to this model can have."""
    # Nested data has a bracket per row, of which rows of one number have as many as numbers.
    image = math.prod(spec.shape) + math.prod(spec.shape[:2]) + spec.shape[0] + 1
    most = max(image, min(settings.max_images * image, _MAX_JSON_VALUES)) + _SPARE_JSON_VALUES
    return AtMost(
        b",[{",
        most,
        lambda values: (
            f"the JSON has about {values} values, at most {most} are read for this model; send the tensor as "
            "binary data (`binary_data_size`), which is faster too"
        ),
    )


def _raw(tensor: InferInput, body: bytes, length: int, *, binary: bool) -> memoryview | None:
    """The bytes of the tensor behind the JSON; None where the JSON has its `data`."""
    parameters, rest = tensor.parameters, len(body) - length
    if parameters is not None and parameters.shared_memory_region is not UNSET:
        raise Refused(400, "`inputs[0]`: shared memory is not supported; send `data` or binary data")
    size = None if parameters is None else parameters.binary_data_size
    if size is None:
        if tensor.data is UNSET:
            raise Refused(400, "`inputs[0]`: expected `data`, or binary data with the parameter `binary_data_size`")
        if rest:
            raise Refused(400, f"{rest} bytes follow the JSON, but no input has a `binary_data_size`")
        return None
    if tensor.data is not UNSET:
        raise Refused(400, "`inputs[0]`: expected `data` or `binary_data_size`, got both")
    if not binary:
        raise Refused(400, "binary data needs the header Inference-Header-Content-Length, the bytes of the JSON")
    if size != rest:
        raise Refused(400, f"`inputs[0].parameters.binary_data_size`: {rest} bytes follow the JSON, got {size!s:.20}")
    return memoryview(body)[length:]


def _wanted(outputs: Raw | UnsetType, binary: bool) -> tuple[Wanted, ...]:
    if outputs is UNSET:
        return ()
    if (size := len(memoryview(outputs))) > _MAX_OUTPUTS_BYTES:
        raise Refused(413, f"`outputs`: expected at most {_MAX_OUTPUTS_BYTES} bytes, got {size}; name each output once")
    try:
        entries = _decode_outputs(outputs) or []
    except (msgspec.DecodeError, RecursionError) as error:
        raise malformed(error, "outputs") from error
    if len({entry.name for entry in entries}) < len(entries):
        raise Refused(400, "`outputs`: the same name is there twice")
    return tuple(_want(entry, f"outputs[{index}]", binary) for index, entry in enumerate(entries))


def _want(entry: InferOutputRequest, place: str, binary: bool) -> Wanted:
    if (parameters := entry.parameters) is None:
        return Wanted(name=entry.name, binary=binary)
    if parameters.shared_memory_region is not UNSET:
        raise Refused(400, f"`{place}`: shared memory is not supported; leave the parameter out")
    return Wanted(
        name=entry.name,
        classes=0 if parameters.classification is UNSET else parameters.classification,
        binary=binary if parameters.binary_data is UNSET else parameters.binary_data,
    )
