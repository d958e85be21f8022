"""The way in: Starlette's router for this project's routes, around BentoML's application, which gets the rest.

BentoML's own stack (OpenTelemetry, access log, metrics, timeout, Starlette, pydantic) takes longer for a request than
a small network needs for an image, so a request passes from uvicorn to its handler through this module only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl

from starlette.convertors import Convertor, register_url_convertor
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.bodies import parsed
from serve.observe.metrics import CONTENT_TYPE
from serve.observe.trace import continue_trace
from serve.page import route as page
from serve.page.docs import docs_reply
from serve.protocols import v1
from serve.protocols.form import Picture, read_form
from serve.protocols.http import Call, Refused, Reply, json_reply, refusal, reply_of_error, request_id
from serve.protocols.oip import handlers as oip
from serve.protocols.openapi.document import document
from serve.protocols.openapi.operations import OPERATIONS
from serve.settings import Settings
from serve.worker import Runtime
from zoo.artefact.decode import FORMATS, sniff
from zoo.base.errors import PocketzooError

__all__ = ["Front"]

Handler = Callable[..., Awaitable[Reply]]
"""Called with the runtime, the call and the named parts of its path."""

_OF_BENTOML = ("/livez", "/readyz", "/healthz", "/schema.json")

_NOT_IMAGES = ("multipart/", "application/x-www-form-urlencoded", "text/")
"""Media types that some client libraries choose by themselves; worth a sentence about what to send instead."""


_ALIVE = dataclasses.replace(json_reply({"status": "alive"}), headers=((b"vary", b"accept"),))


async def _predict_form(runtime: Runtime, call: Call) -> Reply:
    _check_encoding(call)
    body = await runtime.read(call, runtime.settings.max_request_bytes)
    upload = read_form(call.headers.get(b"content-type", b""), body, runtime.settings)
    return _encoded(call, await runtime.answer(call, upload.model, None, upload.pictures))


async def _predict_raw(runtime: Runtime, call: Call, name: str | None = None, version: str | None = None) -> Reply:
    """One image, which is the body, or several in KServe's V1 JSON: the body's bytes say which."""
    _check_encoding(call)
    settings = runtime.settings
    if name is not None:
        runtime.repository.get(name, version)  # a wrong name is refused before its image is read
    json_like = call.media_type == "application/json"
    limit = settings.max_request_bytes if json_like else settings.max_image_bytes
    body = await runtime.read(call, limit, json=functools.partial(v1.at_most, settings))
    pictures: tuple[Picture, ...] = (("", body),)
    if sniff(body) is None:
        if json_like or body.lstrip()[:1] == b"{":
            pictures = await parsed(body, v1.read_instances, settings)
        else:
            _check_media_type(call)
    return _encoded(call, await runtime.answer(call, name, version, pictures))


async def _root(runtime: Runtime, call: Call) -> Reply:
    """The page, for who asks for HTML as browsers do; else what KServe's V1 clients read to see that a server lives."""
    if runtime.settings.page and b"text/html" in call.headers.get(b"accept", b""):
        return page.unless_known(page.files()["/"], call)
    return _ALIVE


async def _names(runtime: Runtime, call: Call) -> Reply:
    return json_reply({"models": list(runtime.repository.names())})


def _check_encoding(call: Call) -> None:
    encoding = call.headers.get(b"content-encoding", b"identity")
    if encoding.strip().lower() not in (b"", b"identity"):
        name = encoding.decode("latin-1")
        raise Refused(415, f"Content-Encoding {name!r:.80}: image files are compressed already; send them as they are")


def _encoded(call: Call, document: dict[str, Any]) -> Reply:
    start = call.elapsed()
    reply = json_reply(document)
    call.stages["encode"] = call.elapsed() - start
    return reply


def _check_media_type(call: Call) -> None:
    given = call.media_type
    if given in ("", "application/octet-stream") or given.startswith("image/"):
        return
    if given.startswith(_NOT_IMAGES):
        raise Refused(
            415,
            f"expected an image as the body, got {given!r:.80}; send one with: curl --data-binary @photo.jpg "
            "-H 'Content-Type: image/jpeg' ..., or a multipart form to /predict",
        )
    raise Refused(415, f"expected an image as the body, got the media type {given!r:.80}")


async def _models(runtime: Runtime, call: Call) -> Reply:
    return json_reply(await runtime.describe())


async def _openapi(runtime: Runtime, call: Call) -> Reply:
    return _documents(runtime.settings)[0]


async def _docs(runtime: Runtime, call: Call) -> Reply:
    return page.unless_known(_documents(runtime.settings)[1], call)


@functools.cache
def _documents(settings: Settings) -> tuple[Reply, Reply]:
    """The OpenAPI document, as JSON and as a page."""
    found = document(formats=settings.formats or FORMATS)
    return json_reply(found), docs_reply(found, back=bool(settings.page))


async def _metrics(runtime: Runtime, call: Call) -> Reply:
    body = await asyncio.to_thread(runtime.metrics.render)
    return Reply(body=body, media_type=CONTENT_TYPE.encode())


HANDLERS: Mapping[str, Handler] = {
    "predict": _predict_form,
    "predictImage": _predict_raw,
    "predictImageOf": _predict_raw,
    "predictImageOfVersion": _predict_raw,
    "models": _models,
    "modelNames": _names,
    "openapi": _openapi,
    "docs": _docs,
    "root": _root,
    "metrics": _metrics,
    **oip.HANDLERS,
}
"""Name of an operation -> what answers it; BentoML's operations have none."""


class _ModelName(Convertor[str]):
    """A model's name, which may have slashes inside."""

    regex = "[^:]*[^:/]"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("model", _ModelName())


class _Endpoint:
    """One route as an ASGI application: whose request it is, its answer, or a sentence in its place, and the record."""

    def __init__(
        self,
        runtime: Runtime,
        handler: Handler,
        *,
        route: str,
        method: str | None,
        key: bool = False,
        strict: bool = True,
    ) -> None:
        """Answer with `handler`.

        Args:
            runtime: the worker's.
            handler: what answers.
            route: its template, for the log and the metrics.
            method: the only one it takes; None: any.
            key: whether it needs one.
            strict: whether a query is refused.
        """
        self._runtime = runtime
        self._handler = handler
        self._route = route
        self._methods = ("GET", "HEAD") if method == "GET" else (method,) if method else ()
        self._key = key
        self._strict = strict

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        runtime = self._runtime
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        call = Call(
            receive=receive,
            method=scope["method"],
            path=scope["path"],
            headers=headers,
            request_id=request_id(headers),
            trace=continue_trace(headers) if b"traceparent" in headers else None,
            client=client[0] if (client := scope.get("client")) else None,
        )
        runtime.metrics.in_flight.inc()
        status, error = 499, None
        try:
            reply, error = await self._answer(call, scope)
            await _send(send, call, reply)
            status = reply.status
        except RuntimeError:  # uvloop's, for a closed connection
            if not call.gone():
                raise
        finally:
            runtime.bodies.release(call)
            runtime.metrics.in_flight.dec()
            runtime.metrics.record(call, route=self._route, status=status, images=call.images)
            runtime.log.request(call, route=self._route, status=status, error=error)

    async def _answer(self, call: Call, scope: Scope) -> tuple[Reply, str | None]:
        runtime = self._runtime
        try:
            if self._methods and call.method not in self._methods:
                expected = f"{self._route}: expected {self._methods[0]}, got {call.method!r:.20}"
                raise Refused(405, expected, allow=self._methods)
            if self._key:
                runtime.authorize(call)
            if self._strict and (query := scope.get("query_string")):
                _refuse_query(query)
            async with asyncio.timeout(runtime.settings.timeout_seconds):
                return await self._handler(runtime, call, **scope.get("path_params", {})), None
        except PocketzooError as error:
            return reply_of_error(error), str(refusal(error))
        except TimeoutError:
            late = _late(call, runtime.settings.timeout_seconds)
            return reply_of_error(late), str(late)
        except Exception as error:
            runtime.log.failure(call, error)
            return json_reply({"error": "the server failed; its log says why"}, status=500), repr(error)


def _refuse_query(query: bytes) -> None:
    for name, _ in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        raise Refused(
            400,
            f"unknown query parameter {name!r:.80}: no route takes any; a model is named in the path, as in "
            "POST /v1/models/NAME:predict, or in the form field `model`",
        )


class Front:
    """The ASGI application that uvicorn runs: ours, around BentoML's."""

    def __init__(self, app: ASGIApp, runtime: Callable[[], Runtime]) -> None:
        """`app` is BentoML's; `runtime` is asked for the worker's once `app` has started."""
        self._app = app
        self._find_runtime = runtime
        self._router: ASGIApp = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it to BentoML."""
        if scope["type"] == "http":
            await self._router(scope, receive, send)
        else:
            await self._app(scope, receive, self._noticing_start(send))

    def _noticing_start(self, send: Send) -> Send:
        async def noticing(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                runtime = self._find_runtime()
                nowhere = _Endpoint(runtime, _nowhere, route="", method=None, strict=False)
                self._router = Router(list(self._routes(runtime)), redirect_slashes=False, default=nowhere)
            await send(message)

        return noticing

    def _routes(self, runtime: Runtime) -> Iterator[Route]:
        for operation in OPERATIONS:
            if (handler := HANDLERS.get(operation.name)) is None:
                continue
            label = operation.path.replace("{name}", "{model}")
            method = operation.method.upper()
            strict = "text/html" not in operation.answers
            key = operation.key and runtime.keys.required
            endpoint = _Endpoint(runtime, handler, route=label, method=method, key=key, strict=strict)
            # A slash at the end is what some clients of the Open Inference Protocol send.
            for end in ("", "/") if operation.path.startswith("/v2") else ("",):
                yield Route(operation.path.replace("{name}", "{name:model}") + end, endpoint)
        for path in _OF_BENTOML:
            yield Route(path, _NoSniffing(self._app))
        for path, reply in page.files().items():
            if path != "/" and (path in (page.ICON, page.STYLE) or runtime.settings.page):
                yield Route(path, _Endpoint(runtime, _constant(reply), route=path, method="GET", strict=False))


class _NoSniffing:
    """BentoML's answers, whose media types a browser is to believe."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
            await send(message)

        await self._app(scope, receive, sending)


async def _nowhere(runtime: Runtime, call: Call) -> Reply:
    raise Refused(404, f"no such route: {call.path!r:.100}; GET /docs lists them")


def _late(call: Call, seconds: float) -> Refused:
    what = "the body did not come" if call.reading else "no answer"
    return Refused(408 if call.reading else 504, f"{what} within {seconds:g} s (POCKETZOO_TIMEOUT_SECONDS)")


def _constant(reply: Reply) -> Handler:
    async def give(runtime: Runtime, call: Call) -> Reply:
        return page.unless_known(reply, call)

    return give


async def _send(send: Send, call: Call, reply: Reply) -> None:
    status = reply.status
    headers = [
        (b"content-type", reply.media_type),
        *(((b"content-length", str(len(reply.body)).encode()),) if reply.status != 304 else ()),
        (b"x-request-id", call.request_id.encode()),
        *reply.headers,
        *(call.trace.headers if call.trace is not None else ()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if call.method == "HEAD" else reply.body})
