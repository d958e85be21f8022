"""What every operation of the OpenAPI document shares: errors, headers, parameters, security.

Source: OpenAPI Specification 3.1.0.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "ERRORS",
    "SECURITY_SCHEMES",
    "JsonObject",
    "error_responses",
    "guarded",
    "headers",
    "json_answer",
    "operation",
    "parameter",
    "parameters",
    "reference",
]

JsonObject = dict[str, Any]

ERRORS = {
    400: "The request is malformed: a broken form or document, an unknown field, a value that does not fit.",
    401: "An API key is needed, and none or an unknown one came.",
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

_EXAMPLES = {
    400: "no image: expected one or more files in the form field `images`; "
    "send one with: curl -F images=@photo.jpg http://localhost:3000/predict",
    401: "this needs an API key, and none came; send one as `Authorization: Bearer KEY` or `X-API-Key: KEY`",
    404: "unknown model 'vitt'; did you mean vit?",
    429: "the API key 'phone-app' has used up its rate of 10 requests per second; try again in 0.10 seconds",
}

SECURITY_SCHEMES: JsonObject = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def reference(section: str, name: str) -> JsonObject:
    """A reference into the components."""
    return {"$ref": f"#/components/{section}/{name}"}


def parameter(name: str, where: str, description: str, schema: JsonObject, **more: Any) -> JsonObject:
    """One parameter; required if it is a part of the path."""
    return {"name": name, "in": where, "description": description, "required": where == "path", "schema": schema} | more


def headers() -> JsonObject:
    """The headers of answers."""
    text = {"type": "string"}
    return {
        "X-Request-Id": {"description": "What the log calls this request.", "schema": text},
        "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}},
        "WWW-Authenticate": {"description": "How to send a key.", "schema": text},
        "Allow": {"description": "The methods of this route.", "schema": text},
    }


def parameters(models: tuple[str, ...]) -> JsonObject:
    """Parts of paths and headers that several operations take; `models` are names for examples."""
    name = models[0] if models else "vit"
    text = {"type": "string"}
    return {
        "name": parameter("name", "path", "A model, as GET /models names it.", text, example=name),
        "version": parameter(
            "version", "path", "A version: the first 12 hexadecimal digits of its digest.", text, example="69efcedb1234"
        ),
        "request_id": parameter(
            "X-Request-Id", "header", "What logs and the answer shall call this request.", {"type": "string"}
        ),
        "traceparent": parameter("traceparent", "header", "W3C Trace Context; comes back in the answer.", text),
    }


def error_responses() -> JsonObject:
    """A response for each of :data:`ERRORS`."""
    extra = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}
    found: JsonObject = {}
    for status, description in ERRORS.items():
        names = ("X-Request-Id", extra[status]) if status in extra else ("X-Request-Id",)
        content: JsonObject = {"schema": reference("schemas", "ErrorResponse")}
        if status in _EXAMPLES:
            content["example"] = {"error": _EXAMPLES[status]}
        found[str(status)] = {
            "description": description,
            "headers": {name: reference("headers", name) for name in names},
            "content": {"application/json": content},
        }
    return found


def json_answer(schema: str, description: str, *, binary: bool = False, example: Any = None) -> JsonObject:
    """A response 200 of the component `schema`; `binary`: or bytes behind the JSON."""
    content: JsonObject = {"application/json": {"schema": reference("schemas", schema)}}
    if example is not None:
        content["application/json"]["example"] = example
    if binary:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {
        "description": description,
        "headers": {"X-Request-Id": reference("headers", "X-Request-Id")},
        "content": content,
    }


def operation(name: str, summary: str, tag: str, answer: JsonObject, *statuses: int) -> JsonObject:
    """One operation that answers 200 with `answer`, or one of `statuses`, or 405, with an error."""
    return {
        "operationId": name,
        "summary": summary,
        "tags": [tag],
        "parameters": [reference("parameters", "request_id"), reference("parameters", "traceparent")],
        "responses": {"200": answer}
        | {str(status): reference("responses", str(status)) for status in sorted({405, *statuses})},
    }


def guarded(found: JsonObject) -> JsonObject:
    """The operation with the security of predicting (a key if the server has any)."""
    found["responses"] = dict(
        sorted((found["responses"] | {str(code): reference("responses", str(code)) for code in (401, 429)}).items())
    )
    found["security"] = [{}, {"bearer": []}, {"apiKey": []}]
    return found
