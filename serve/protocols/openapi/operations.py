"""Every route: its path, what it takes and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from pydantic import BaseModel

from serve.protocols import schema
from serve.protocols.oip.request import IndexRequest, InferRequest
from serve.protocols.v1 import PredictRequest

__all__ = ["IMAGE", "OPERATIONS", "Document", "Operation"]

Document = type[BaseModel] | type[msgspec.Struct]

IMAGE = "image/*"
"""Stands for the media types of all accepted formats."""

_MODEL = (404, 503, 504)
_BODY = (408, 413)
_IMAGES = (*_MODEL, *_BODY, 415, 422)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one route."""

    path: str
    name: str
    summary: str
    tag: str
    method: str = "get"
    answers: Mapping[str, Document | None]
    """Media type -> its document; None: text, or bytes."""
    errors: tuple[int, ...] = ()
    """Statuses beside those that every route answers."""
    body: Mapping[str, Document | None] = field(default_factory=dict)
    optional: bool = False
    """Whether the body may be left out."""
    key: bool = False
    """Whether it needs an API key, if the server has any."""
    ours: bool = True
    """Whether it is this project's, with its headers and errors, or BentoML's."""
    more: str = ""
    """What else there is to say."""
    headers: tuple[str, ...] = ()
    """Headers of the request that only this one looks at."""


def _predict(path: str, name: str, body: Mapping[str, Document | None], summary: str) -> Operation:
    return Operation(
        path=path,
        name=name,
        summary=summary,
        tag="Predicting",
        method="post",
        answers={"application/json": schema.PredictResponse},
        errors=_IMAGES,
        body=body,
        key=True,
    )


def _image(path: str, name: str) -> Operation:
    body = {IMAGE: None, "application/octet-stream": None, "application/json": PredictRequest}
    return _predict(path, name, body, "Classify one image, which is the body, or several in KServe's V1 JSON")


def _json(
    path: str,
    name: str,
    summary: str,
    answer: type[BaseModel],
    errors: tuple[int, ...] = (),
    tag: str = "Open Inference Protocol",
) -> Operation:
    return Operation(
        path=path,
        name=name,
        summary=summary,
        tag=tag,
        answers={"application/json": answer},
        errors=errors,
        key="/health/" not in path,
    )


def _of_model(path: str, suffix: str) -> tuple[Operation, ...]:
    return (
        Operation(
            path=f"{path}/infer",
            name=f"modelInfer{suffix}",
            summary="Logits of tensors, or labels of image files",
            tag="Open Inference Protocol",
            method="post",
            answers={"application/json": schema.InferResponse, "application/octet-stream": None},
            errors=_IMAGES,
            body={"application/json": InferRequest, "application/octet-stream": None},
            key=True,
            more="Tensors as JSON or, with Inference-Header-Content-Length, as bytes behind the JSON. An input of "
            "datatype BYTES holds encoded image files (base64 in JSON), which the server decodes as it does for "
            "/predict. GET /v2/models/{name} names the inputs and outputs.",
            headers=("header_length", "encoding"),
        ),
        _json(
            f"{path}/ready", f"modelReady{suffix}", "Whether a model is loaded and checked", schema.ModelReady, _MODEL
        ),
        _json(path, f"modelMetadata{suffix}", "Inputs and outputs of a model", schema.ModelMetadata, _MODEL),
    )


def _text(path: str, name: str, summary: str, media_type: str, *, ours: bool = True) -> Operation:
    return Operation(path=path, name=name, summary=summary, tag="Operation", answers={media_type: None}, ours=ours)


OPERATIONS: tuple[Operation, ...] = (
    _predict(
        "/predict", "predict", {"multipart/form-data": schema.PredictForm}, "Classify one or several images of a form"
    ),
    _image("/v1/predict", "predictImage"),
    _image("/v1/models/{name}/versions/{version}:predict", "predictImageOfVersion"),
    _image("/v1/models/{name}:predict", "predictImageOf"),
    _json("/v1/models", "modelNames", "Names of the models", schema.ModelNames, tag="KServe's V1 protocol"),
    Operation(
        path="/",
        name="root",
        summary="Whether the process answers; for browsers, a page to send images from",
        tag="KServe's V1 protocol",
        answers={"application/json": schema.ServerAlive, "text/html": None},
    ),
    _json(
        "/v1/models/{name}",
        "modelReadyV1",
        "Whether a model can be asked",
        schema.ModelReady,
        _MODEL,
        "KServe's V1 protocol",
    ),
    _json("/v2", "serverMetadata", "Name, version and extensions of the server", schema.ServerMetadata),
    _json("/v2/health/live", "serverLive", "Whether the process answers", schema.ServerLive),
    _json("/v2/health/ready", "serverReady", "Whether the default model is ready", schema.ServerReady),
    Operation(
        path="/v2/repository/index",
        name="repositoryIndex",
        summary="List the versions of all models",
        tag="Open Inference Protocol",
        method="post",
        answers={"application/json": schema.RepositoryIndex},
        errors=(*_BODY, 503, 504),
        body={"application/json": IndexRequest},
        optional=True,
        key=True,
    ),
    *_of_model("/v2/models/{name}/versions/{version}", "Version"),
    *_of_model("/v2/models/{name}", ""),
    Operation(
        path="/models",
        name="models",
        summary="List the models",
        tag="Models",
        answers={"application/json": schema.ModelsResponse},
        errors=(503, 504),
        key=True,
    ),
    _text("/docs.json", "openapi", "This document", "application/json"),
    _text("/docs", "docs", "This document as a page", "text/html"),
    _text("/metrics", "metrics", "Metrics in Prometheus' text format", "text/plain"),
    _text("/livez", "livez", "Whether the process answers", "text/plain", ours=False),
    _text("/healthz", "healthz", "The same as /livez", "text/plain", ours=False),
    _text("/readyz", "readyz", "Whether the default model is loaded, checked and warm", "text/plain", ours=False),
)
"""In this order they are matched. As a model's name may have slashes, what has more behind it comes first."""
