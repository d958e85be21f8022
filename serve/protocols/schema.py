"""What the server takes and answers, as pydantic models: they document the JSON at `/docs`.

Sources: github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md, and Triton's extension for
binary tensor data, for what is answered below /v2.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, WithJsonSchema

__all__ = [
    "Accuracy",
    "ErrorResponse",
    "ImagePrediction",
    "InferResponse",
    "LabelProbability",
    "Milliseconds",
    "ModelInfo",
    "ModelInput",
    "ModelMetadata",
    "ModelNames",
    "ModelReady",
    "ModelsResponse",
    "PredictForm",
    "PredictResponse",
    "RepositoryIndex",
    "ServerAlive",
    "ServerLive",
    "ServerMetadata",
    "ServerReady",
]


class PredictForm(BaseModel):
    """The form of POST /predict; `image` and `file` are other names of `images`."""

    model_config = ConfigDict(extra="forbid")

    images: list[Annotated[bytes, WithJsonSchema({"type": "string", "format": "binary"})]] = Field(
        min_length=1, description="one or several image files"
    )
    model: str | None = Field(None, description="a name of GET /models; default: the default model")


class LabelProbability(BaseModel):
    """One label and how probable it is."""

    label: str
    probability: float = Field(description="between 0 and 1, calibrated on validation data")


class ImagePrediction(BaseModel):
    """The answer to one image."""

    label: str = Field(description="the most probable label")
    abstained: bool = Field(description="whether its probability is below POCKETZOO_ABSTAIN: do not rely on it")
    probabilities: list[LabelProbability] = Field(description="the most probable labels, best first")


class Milliseconds(BaseModel):
    """Where the time went; decode, preprocess and infer are sums over the request's images."""

    read: float = Field(description="receiving the body")
    load: float | None = Field(None, description="loading and checking the model, by the first request that names it")
    queue: float = Field(description="waiting for a free slot")
    decode: float = Field(description="image file to pixels")
    preprocess: float = Field(description="resizing, cropping, normalising")
    infer: float = Field(description="the network; with batching, including the wait for the batch")
    total: float = Field(description="from the request's headers to this document, on the clock")


class PredictResponse(BaseModel):
    """The answer of POST /predict and POST /v1/..."""

    model: str = Field(description="name of the artefact that answered, as in GET /models")
    version: str = Field(description="first 12 hexadecimal digits of its digest")
    digest: str = Field(description="SHA-256 of the artefact's file")
    request_id: str = Field(description="the X-Request-Id of the request, or one drawn for it")
    predictions: list[ImagePrediction] = Field(description="one per image, in the order of the request")
    milliseconds: Milliseconds


class ErrorResponse(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="a sentence: what was expected, what came, what to do")


class Accuracy(BaseModel):
    """Measured accuracy of exactly this file."""

    dataset: str
    split: str
    n: int = Field(description="number of images")
    top1: float = Field(description="fraction of images whose most probable label is right")


class ModelInput(BaseModel):
    """What each image is made into, of whatever size and colours it is."""

    colour: str = Field(description="RGB, or L: greyscale")
    size: list[int] = Field(min_length=2, max_length=2, description="height and width in pixels")


class ModelInfo(BaseModel):
    """One served artefact."""

    name: str = Field(description="what a request's `model` says")
    file: str = Field(description="path below the folder of the models")
    version: str | None = Field(description="first 12 hexadecimal digits of the digest")
    digest: str | None = Field(description="SHA-256 of the file; null if it cannot be read")
    bytes: int = Field(description="size of the file")
    precision: str | None = None
    classes: int | None = Field(None, description="number of labels")
    labels: list[str] | None = Field(None, description="what it can answer, in the order of its outputs")
    input: ModelInput | None = Field(None, description="what its network sees of an image")
    accuracy: Accuracy | None = Field(None, description="on the validation split, if it was measured")
    loaded: bool = Field(description="whether it is in memory; it is loaded by the first request that names it")
    engine: str | None = Field(None, description="what computes its answers; null until it is loaded")
    engine_reason: str | None = Field(None, description="why this engine, with the numbers that decided")
    error: str | None = Field(None, description="why the file cannot be served")


class ModelNames(BaseModel):
    """The answer of GET /v1/models."""

    models: list[str]


class ModelsResponse(BaseModel):
    """The answer of GET /models."""

    default: str = Field(description="the model that answers when a request names none")
    models: list[ModelInfo]


class ServerAlive(BaseModel):
    """What KServe's V1 clients read at `/`."""

    status: Literal["alive"]


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
    datatype: str = Field(description="FP32 or BYTES")
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


class InferOutput(BaseModel):
    """One tensor of an answer."""

    name: str
    shape: list[int]
    datatype: str = Field(description="FP32 or BYTES")
    parameters: dict[str, str | int | float | bool] | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """The answer of POST /v2/models/{name}/infer."""

    model_name: str
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, str | int | float | bool] | None = None
    outputs: list[InferOutput]
