"""The one OpenAPI document of all routes, from their table and the schemas of what they take and answer.

Source: OpenAPI Specification 3.1.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.protocols.oip.request import InferOutputRequest, InferRequest
from serve.protocols.openapi.operations import IMAGE, OPERATIONS, Document, Operation
from serve.protocols.schema import ErrorResponse, PredictResponse
from zoo.artefact.preprocess import FORMATS

__all__ = ["ERRORS", "document"]

JsonObject = dict[str, Any]

_ABOUT = """\
Every answer that is not 2xx is `{"error": "a sentence"}`: what was expected, what came, what to do. A route that is
asked with another method answers 405. The fast path is `POST /v1/predict`, whose body is the image file itself.
"""

ERRORS: dict[int, str] = {
    400: "The request is malformed.",
    401: "The API key is missing or unknown; `WWW-Authenticate` says how to send this.",
    404: "There is no such route, model or version.",
    405: "The route does not take this method; `Allow` says which.",
    408: "The body took longer than POCKETZOO_TIMEOUT_SECONDS.",
    413: "The body, an image file, its pixels or the number of images are more than is accepted.",
    415: "The media type or the format of the image is not accepted.",
    422: "The image cannot be decoded, or the tensor does not fit the model.",
    429: "The API key has used up its rate; `Retry-After` says when to try again.",
    503: "The server is busy (`Retry-After` says when to try again), or the model cannot be served.",
    504: "The answer would have come later than POCKETZOO_TIMEOUT_SECONDS.",
}
"""Status -> when it comes."""

_ERROR_HEADERS = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}

_TEXT: JsonObject = {"type": "string"}
_HEADERS: JsonObject = {
    "X-Request-Id": {"description": "What the log calls this request.", "schema": _TEXT},
    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "How to send a key.", "schema": _TEXT},
    "Allow": {"description": "The methods of this route.", "schema": _TEXT},
}
_SECURITY: JsonObject = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}

_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAFklEQVR4nGNsaGhgYGBgYmBgYGBgAAASKgGEzwCOrgAAAABJRU5ErkJggg=="
"""A grey image of 2 x 2 pixels."""
_EXAMPLES: Mapping[Document, JsonObject] = {
    InferRequest: {"id": "1", "inputs": [{"name": "image_bytes", "shape": [1], "datatype": "BYTES", "data": [_PNG]}]},
    PredictResponse: {
        "model": "vit",
        "version": "69efcedb1234",
        "digest": "69efcedb1234" + "0" * 52,
        "request_id": "5f2b7c1e9a4d4b0e",
        "predictions": [
            {
                "label": "cat",
                "abstained": False,
                "probabilities": [{"label": "cat", "probability": 0.98}, {"label": "fox", "probability": 0.02}],
            }
        ],
        "milliseconds": {"read": 0.1, "queue": 0.0, "decode": 1.8, "preprocess": 2.0, "infer": 2.1, "total": 6.2},
    },
}


def document(models: Sequence[str] = (), *, formats: Sequence[str] = FORMATS) -> JsonObject:
    """OpenAPI 3.1 of every route.

    Args:
        models: names of models, the default first; for examples.
        formats: Pillow's names of the image formats that are accepted.
    """
    paths: JsonObject = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one, formats)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pocketzoo",
            "version": "1",
            "summary": "Image classification",
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {str(status): _error(status) for status in ERRORS},
            "parameters": _parameters(models[0] if models else "vit"),
            "headers": _HEADERS,
            "securitySchemes": _SECURITY,
        },
    }


def _schemas() -> JsonObject:
    models: list[type[BaseModel]] = [ErrorResponse]
    structs: list[type[msgspec.Struct]] = [InferOutputRequest]
    for one in OPERATIONS:
        for model in (*one.body.values(), *one.answers.values()):
            if model is not None and issubclass(model, BaseModel):
                models.append(model)
            elif model is not None:
                structs.append(model)
    place = "#/components/schemas/{%s}"
    _, found = models_json_schema([(model, "serialization") for model in models], ref_template=place % "model")
    _, ours = msgspec.json.schema_components(structs, ref_template=place % "name")
    return {**ours, **found["$defs"]}


def _operation(one: Operation, formats: Sequence[str]) -> JsonObject:
    parts = [*re.findall(r"{(\w+)}", one.path), *one.headers, *(("request_id", "traceparent") if one.ours else ())]
    answer: JsonObject = {"description": one.summary, "content": _content(one.answers, formats)}
    if one.ours:
        answer["headers"] = {"X-Request-Id": _reference("headers", "X-Request-Id")}
    statuses = {*one.errors, *((405,) if one.ours else ()), *((401, 429) if one.key else ())}
    if one.body or (one.ours and "text/html" not in one.answers):  # pages do not mind a query, which the others refuse
        statuses.add(400)
    found: JsonObject = {
        "operationId": one.name,
        "summary": one.summary,
        "tags": [one.tag],
        "parameters": [_reference("parameters", part) for part in parts],
        "responses": {"200": answer}
        | {str(status): _reference("responses", str(status)) for status in sorted(statuses)},
    }
    if one.more:
        found["description"] = one.more
    if one.body:
        found["requestBody"] = {"required": not one.optional, "content": _content(one.body, formats)}
    if one.key:
        found["security"] = [{}, *({name: []} for name in _SECURITY)]
    if one.name == "readyz":
        found["responses"]["503"] = {"description": "Not yet, or not any more.", "content": answer["content"]}
    elif one.name == "serverReady":
        found["responses"]["503"] = {**answer, "description": "The default model cannot be served"}
    return found


def _content(content: Mapping[str, Document | None], formats: Sequence[str]) -> JsonObject:
    found: JsonObject = {}
    for media_type, model in content.items():
        entry: JsonObject
        if model is not None:
            entry = {"schema": _reference("schemas", model.__name__)}
            if model in _EXAMPLES:
                entry["example"] = _EXAMPLES[model]
        elif media_type.startswith("text/"):
            entry = {"schema": _TEXT}
        else:
            entry = {"schema": {"type": "object"} if media_type == "application/json" else _BINARY}
        names = [f"image/{name.lower()}" for name in formats] if media_type == IMAGE else [media_type]
        found |= dict.fromkeys(names, entry)
    return found


_BINARY: JsonObject = {"type": "string", "format": "binary"}


def _reference(section: str, name: str) -> JsonObject:
    return {"$ref": f"#/components/{section}/{name}"}


def _error(status: int) -> JsonObject:
    names = ("X-Request-Id", _ERROR_HEADERS[status]) if status in _ERROR_HEADERS else ("X-Request-Id",)
    return {
        "description": ERRORS[status],
        "headers": {name: _reference("headers", name) for name in names},
        "content": {"application/json": {"schema": _reference("schemas", ErrorResponse.__name__)}},
    }


def _parameters(model: str) -> JsonObject:
    """Parts of paths and headers of requests; `model` is a name for the example."""
    version = "A version: the first 12 hexadecimal digits of its digest."
    length = "Bytes of the JSON at the start of a body that goes on with binary tensors."
    request_id = "What logs and the answer shall call this request."
    return {
        "name": _parameter("name", "path", "A model, as GET /models names it.") | {"example": model},
        "version": _parameter("version", "path", version) | {"example": "69efcedb1234"},
        "request_id": _parameter("X-Request-Id", "header", request_id),
        "traceparent": _parameter("traceparent", "header", "W3C Trace Context; comes back in the answer."),
        "header_length": _parameter("Inference-Header-Content-Length", "header", length)
        | {"schema": {"type": "integer", "minimum": 0}},
        "encoding": _parameter("Content-Encoding", "header", "Of the body: gzip, deflate or none.")
        | {"schema": {"enum": ["gzip", "deflate"]}},
    }


def _parameter(name: str, where: str, description: str) -> JsonObject:
    return {"name": name, "in": where, "description": description, "required": where == "path", "schema": _TEXT}
