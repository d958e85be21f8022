"""What the Open Inference Protocol answers, as pydantic models for the OpenAPI document.

Source: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and Triton's extension for
binary tensor data. The answers themselves are made in :mod:`serve.protocols.oip.handlers`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, RootModel

from serve.protocols.oip.tensors import Datatype

__all__ = [
    "IndexRequest",
    "InferResponse",
    "ModelMetadata",
    "ModelReady",
    "RepositoryIndex",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
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
