"""The Open Inference Protocol's documents as pydantic models, for the OpenAPI document.

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and Triton's extension for
binary tensor data. The answers themselves are made in :mod:`serve.protocols.oip.handlers`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, RootModel

__all__ = [
    "IndexRequest",
    "InferRequest",
    "InferResponse",
    "ModelMetadata",
    "ModelReady",
    "RepositoryIndex",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
]

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]


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


class IndexRequest(BaseModel):
    """The body of POST /v2/repository/index, which may be left out."""

    ready: bool = Field(False, description="leave out the others")


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
