"""The Open Inference Protocol's documents as pydantic models and its operations, for the OpenAPI page only.

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and Triton's extension for
binary tensor data. The answers themselves are made in :mod:`serve.protocols.oip.handlers`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, RootModel

from serve.protocols.openapi.parts import JsonObject, guarded, json_answer, operation, parameter, reference

__all__ = ["MODELS", "paths"]

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
_TAG = "Open Inference Protocol"
_MODEL = (400, 404, 503, 504)


class ServerMetadata(BaseModel):
    """The answer of GET /v2."""

    name: str
    version: str
    extensions: list[str] = Field(description="`binary_tensor_data` among them")


class ServerLive(BaseModel):
    """The answer of GET /v2/health/live."""

    live: bool


class ServerReady(BaseModel):
    """The answer of GET /v2/health/ready."""

    ready: bool


class ModelReady(BaseModel):
    """The answer of GET /v2/models/{name}/ready."""

    name: str
    ready: bool


class TensorMetadata(BaseModel):
    """One input or output of a model."""

    name: str
    datatype: Datatype
    shape: list[int] = Field(description="-1 for a length that may vary")
    parameters: dict[str, Any] | None = Field(None, description="what it holds; a request sends one of the inputs")


class ModelMetadata(BaseModel):
    """The answer of GET /v2/models/{name}."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class IndexEntry(BaseModel):
    """One version of a model."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(description="why it is unavailable")


class RepositoryIndex(RootModel[list[IndexEntry]]):
    """The answer of POST /v2/repository/index."""


class InferInput(BaseModel):
    """One tensor of a request."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: dict[str, str | int | float | bool] | None = Field(
        None, description="`binary_data_size`: bytes of the tensor behind the JSON, in place of `data`"
    )
    data: list[Any] | None = Field(None, description="flat in row-major order, or nested as the shape says")


class InferOutputRequest(BaseModel):
    """One tensor that is asked for."""

    name: str = Field(description="probabilities, logits or label")
    parameters: dict[str, str | int | float | bool] | None = Field(
        None, description="`classification`: the k most probable labels; `binary_data`: the tensor as bytes"
    )


class InferRequest(BaseModel):
    """The body of POST /v2/models/{name}/infer."""

    id: str | None = Field(None, description="comes back in the answer")
    parameters: dict[str, str | int | float | bool] | None = None
    inputs: list[InferInput] = Field(description="one tensor")
    outputs: list[InferOutputRequest] | None = Field(None, description="default: probabilities and label")


class InferOutput(BaseModel):
    """One tensor of an answer."""

    name: str
    shape: list[int]
    datatype: Datatype
    parameters: dict[str, str | int | float | bool] | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """The answer of POST /v2/models/{name}/infer."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, str | int | float | bool] | None = None
    outputs: list[InferOutput]


MODELS: tuple[type[BaseModel], ...] = (
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    RepositoryIndex,
    ServerLive,
    ServerMetadata,
    ServerReady,
)

_HEADER_LENGTH = parameter(
    "Inference-Header-Content-Length",
    "header",
    "Bytes of the JSON at the start of a body that goes on with binary tensors.",
    {"type": "integer", "minimum": 0},
)

_ENCODING = parameter(
    "Content-Encoding", "header", "Of the body: gzip, deflate or none.", {"enum": ["gzip", "deflate"]}
)


def paths() -> JsonObject:
    """The operations below /v2."""
    found: JsonObject = {
        "/v2": {"get": _get("serverMetadata", "Name, version and extensions of the server", ServerMetadata, keys=True)},
        "/v2/health/live": {"get": _get("serverLive", "Whether the process answers", ServerLive)},
        "/v2/health/ready": {"get": _get("serverReady", "Whether the default model is ready", ServerReady)},
        "/v2/repository/index": {"post": _index()},
    }
    not_ready = json_answer("ServerReady", "The default model cannot be served")
    found["/v2/health/ready"]["get"]["responses"]["503"] = not_ready
    for place, suffix, names in (
        ("/v2/models/{name}", "", ("name",)),
        ("/v2/models/{name}/versions/{version}", "Version", ("name", "version")),
    ):
        parameters = [reference("parameters", name) for name in names]
        found[place] = {
            "parameters": parameters,
            "get": _get(f"modelMetadata{suffix}", "Inputs and outputs of a model", ModelMetadata, *_MODEL, keys=True),
        }
        found[f"{place}/ready"] = {
            "parameters": parameters,
            "get": _get(
                f"modelReady{suffix}", "Whether a model is loaded and checked", ModelReady, 404, 503, keys=True
            ),
        }
        found[f"{place}/infer"] = {"parameters": parameters, "post": _infer(f"modelInfer{suffix}")}
    return found


def _get(name: str, summary: str, model: type[BaseModel], *statuses: int, keys: bool = False) -> JsonObject:
    found = operation(name, summary, _TAG, json_answer(model.__name__, summary), *statuses)
    return guarded(found) if keys else found


def _index() -> JsonObject:
    answer = json_answer("RepositoryIndex", "Every version of every model")
    found = operation("repositoryIndex", "List the versions of all models", _TAG, answer, 400, 408, 413, 503)
    wanted = {"type": "object", "properties": {"ready": {"type": "boolean", "description": "leave out the others"}}}
    found["requestBody"] = {"required": False, "content": {"application/json": {"schema": wanted}}}
    return guarded(found)


def _infer(name: str) -> JsonObject:
    found = operation(
        name,
        "Logits of tensors, or labels of image files",
        _TAG,
        json_answer("InferResponse", "The tensors asked for", binary=True),
        *_MODEL,
        *(408, 413, 415, 422),
    )
    found["description"] = (
        "Tensors as JSON or, with Inference-Header-Content-Length, as bytes behind the JSON. An input of datatype "
        "BYTES holds encoded image files (base64 in JSON), which the server decodes as it does for /predict. "
        "GET /v2/models/{name} names the inputs and outputs."
    )
    found["parameters"] = [*found["parameters"], _HEADER_LENGTH, _ENCODING]
    found["requestBody"] = {
        "required": True,
        "content": {
            "application/json": {"schema": reference("schemas", "InferRequest"), "example": _EXAMPLE},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
    return guarded(found)


_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGNsaGhgYGBgYmBgYGBgAAASKgGEzwCOrgAAAABJRU5ErkJggg=="
"""A grey image of 2 x 2 pixels."""

_EXAMPLE = {"id": "1", "inputs": [{"name": "image_bytes", "shape": [1], "datatype": "BYTES", "data": [_PNG]}]}
