"""The one OpenAPI document of all routes, and the page at /docs that shows it."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serve.protocols.http import Reply
from serve.protocols.openapi import oip as openapi_oip
from serve.protocols.openapi.parts import (
    SECURITY_SCHEMES,
    JsonObject,
    error_responses,
    guarded,
    headers,
    json_answer,
    operation,
    parameters,
    reference,
)
from serve.protocols.schema import ErrorResponse, ModelsResponse, PredictResponse
from zoo.artefact.preprocess import FORMATS

__all__ = ["DOCS_POLICY", "docs_page", "document", "pages", "static_files"]

_MODELS: tuple[type[BaseModel], ...] = (ErrorResponse, ModelsResponse, PredictResponse)
_REFERENCE = "#/components/schemas/{model}"
_PREDICT = (400, 404, 408, 413, 415, 422, 503, 504)
_ABOUT = """\
Every answer that is not 2xx is `{"error": "a sentence"}`: what was expected, what came, what to do. A route that is
asked with another method answers 405. The fast path is `POST /v1/predict`, whose body is the image file itself.
"""


def document(models: Sequence[str] = (), *, formats: Sequence[str] = FORMATS) -> JsonObject:
    """OpenAPI 3.1 of every route.

    Args:
        models: names of models, the default first; for examples.
        formats: Pillow's names of the image formats that are accepted.
    """
    every = _MODELS + openapi_oip.MODELS
    _, schemas = models_json_schema([(model, "serialization") for model in every], ref_template=_REFERENCE)
    media_types = [f"image/{name.lower()}" for name in formats]
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
        "paths": _predict_paths(media_types) | openapi_oip.paths() | _other_paths(),
        "components": {
            "schemas": schemas["$defs"],
            "responses": error_responses(),
            "parameters": parameters(tuple(models)),
            "headers": headers(),
            "securitySchemes": SECURITY_SCHEMES,
        },
    }


_FORM: JsonObject = {
    "type": "object",
    "required": ["images"],
    "additionalProperties": False,
    "properties": {
        "images": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary"},
            "description": "one or several image files",
        },
        "model": {"type": "string", "description": "a name of GET /models; default: the default model"},
    },
}


def _predict_paths(media_types: list[str]) -> JsonObject:
    form = _predict("predict", "Classify one or several images of a form")
    form["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": _FORM}}}
    raw = {"schema": {"type": "string", "format": "binary"}}
    body = {"required": True, "content": dict.fromkeys([*media_types, "application/octet-stream"], raw)}
    found: JsonObject = {"/predict": {"post": form}}
    for place, name, names in (
        ("/v1/predict", "predictImage", ()),
        ("/v1/models/{name}:predict", "predictImageOf", ("name",)),
        ("/v1/models/{name}/versions/{version}:predict", "predictImageOfVersion", ("name", "version")),
    ):
        found[place] = {
            "parameters": [reference("parameters", part) for part in names],
            "post": _predict(name, "Classify one image, which is the body") | {"requestBody": body},
        }
    return found


def _predict(name: str, summary: str) -> JsonObject:
    answer = json_answer("PredictResponse", "The most probable labels", example=_ANSWER)
    return guarded(operation(name, summary, "Predicting", answer, *_PREDICT))


def _other_paths() -> JsonObject:
    listed = json_answer("ModelsResponse", "What is served")
    found: JsonObject = {
        "/models": {"get": guarded(operation("models", "List the models", "Models", listed, 503))},
        "/docs.json": {"get": _text("openapi", "This document", "application/json", {"type": "object"})},
        "/docs": {"get": _text("docs", "This document as a page", "text/html")},
    }
    for name, summary in (
        ("metrics", "Metrics in Prometheus' text format"),
        ("livez", "Whether the process answers"),
        ("healthz", "The same as /livez"),
        ("readyz", "Whether the default model is loaded, checked and warm"),
    ):
        found[f"/{name}"] = {"get": _text(name, summary, "text/plain")}
        # BentoML answers these, without our headers and errors.
        del found[f"/{name}"]["get"]["responses"]["405"]
    found["/readyz"]["get"]["responses"]["503"] = {"description": "Not yet, or not any more."}
    return found


def _text(name: str, summary: str, media_type: str, schema: JsonObject | None = None) -> JsonObject:
    content = {media_type: {"schema": schema or {"type": "string"}}}
    found = operation(name, summary, "Operation", {"description": summary, "content": content})
    del found["parameters"]
    return found


_ANSWER = {
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
}

_STYLE, _BUNDLE = "swagger-ui.css", "swagger-ui-bundle.js"
_START = """\
SwaggerUIBundle({url: "docs.json", dom_id: "#docs", deepLinking: true, validatorUrl: null, docExpansion: "list"})"""

DOCS_POLICY = (
    "default-src 'none'; "
    f"script-src 'self' 'sha256-{base64.b64encode(hashlib.sha256(_START.encode()).digest()).decode()}'; "
    "style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy of the page: nothing from elsewhere, and no script but Swagger UI and its start, by hash."""


def docs_page() -> bytes:
    """HTML that shows /docs.json with the Swagger UI that BentoML serves at /static_content."""
    return f"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>pocketzoo: API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="static_content/{_STYLE}">
</head>
<body>
<div id="docs">This page needs JavaScript; <a href="docs.json">docs.json</a> has the same as JSON.</div>
<script src="static_content/{_BUNDLE}"></script>
<script>{_START}</script>
</body>
</html>
""".encode()


def pages() -> dict[str, Reply]:
    """Path -> the page at /docs, with its policy."""
    body = docs_page()
    always = {
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "cache-control": "no-cache",
        "content-security-policy": DOCS_POLICY,
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
        "x-frame-options": "DENY",
    }
    given = tuple((name.encode(), value.encode()) for name, value in always.items())
    return {"/docs": Reply(body=body, media_type=b"text/html; charset=utf-8", headers=given)}


def static_files() -> tuple[Path, ...]:
    """The files of BentoML's package that the page needs."""
    import bentoml

    folder = Path(bentoml.__file__).parent / "_internal" / "server" / "static_content"
    return tuple(folder / name for name in (_STYLE, _BUNDLE))
