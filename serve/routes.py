"""The way in: an ASGI application that answers this project's routes itself and leaves the rest to BentoML.

BentoML's own stack (OpenTelemetry, access log, metrics, timeout, Starlette, pydantic) takes longer for a request than
a small network needs for an image, so a request passes from uvicorn to its handler through this module only.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.observe.metrics import CONTENT_TYPE
from serve.observe.trace import continue_trace, request_id
from serve.page import route as page
from serve.protocols.form import read_form
from serve.protocols.http import Call, Refused, Reply, json_reply, refusal, reply_of_error
from serve.protocols.oip import handlers as oip
from serve.protocols.openapi import docs_page
from serve.protocols.openapi.document import document
from serve.worker import Runtime
from zoo.base.errors import PocketzooError

__all__ = ["Front"]

Handler = Callable[[Runtime, Call], Awaitable[Reply]]

_OF_BENTOML = frozenset({"/livez", "/readyz", "/healthz", "/schema.json"})
_ASSETS_OF_BENTOML = "/static_content/swagger-ui"

_MODEL_ROUTE = re.compile(r"/v1/models/(?P<name>[^:]+?)(?:/versions/(?P<version>[^/:]+))?:predict")

_NOT_IMAGES = ("multipart/", "application/json", "application/x-www-form-urlencoded", "text/")
"""Media types that some client libraries choose by themselves; worth a sentence about what to send instead."""


async def _predict_form(runtime: Runtime, call: Call) -> Reply:
    _check_encoding(call)
    body = await runtime.read(call, runtime.settings.max_request_bytes)
    upload = read_form(call.headers.get(b"content-type", b""), body, runtime.settings)
    return _encoded(call, await runtime.answer(call, upload.model, None, upload.pictures))


async def _predict_raw(runtime: Runtime, call: Call, name: str | None = None, version: str | None = None) -> Reply:
    _check_media_type(call)
    if name is not None:
        runtime.repository.get(name, version)  # a wrong name is refused before its image is read
    body = await runtime.read(call, runtime.settings.max_image_bytes)
    return _encoded(call, await runtime.answer(call, name, version, (("", body),)))


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
    _check_encoding(call)
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
    return json_reply(await asyncio.to_thread(runtime.repository.describe))


async def _openapi(runtime: Runtime, call: Call) -> Reply:
    return _document(runtime.settings.formats)


@functools.cache
def _document(formats: tuple[str, ...]) -> Reply:
    return json_reply(document(formats=formats))


async def _metrics(runtime: Runtime, call: Call) -> Reply:
    body = await asyncio.to_thread(runtime.metrics.render)
    return Reply(body=body, media_type=CONTENT_TYPE.encode())


_ROUTES: dict[str, tuple[str, Handler]] = {
    "/predict": ("POST", _predict_form),
    "/v1/predict": ("POST", _predict_raw),
    "/models": ("GET", _models),
    "/docs.json": ("GET", _openapi),
    "/metrics": ("GET", _metrics),
}


class Front:
    """The ASGI application that uvicorn runs: ours, around BentoML's."""

    def __init__(self, app: ASGIApp, runtime: Callable[[], Runtime]) -> None:
        """`app` is BentoML's; `runtime` is asked for the worker's once `app` has started."""
        self._app = app
        self._find_runtime = runtime
        self._runtime: Runtime | None = None
        self._static: Mapping[str, Reply] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it to BentoML."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._noticing_start(send))
            return
        if self._runtime is None or scope["type"] != "http" or self._belongs_to_bentoml(scope):
            await self._app(scope, receive, send)
            return
        runtime = self._runtime
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        call = Call(
            receive=receive,
            method=scope["method"],
            path=scope["path"],
            headers=headers,
            request_id=request_id(headers),
            trace=continue_trace(headers),
        )
        runtime.metrics.in_flight(1)
        route, status, error = "", 499, None
        try:
            route, reply, error = await self._answer(runtime, call)
            status = reply.status
            await _send(send, call, reply)
        finally:
            runtime.release(call)
            runtime.metrics.in_flight(-1)
            runtime.metrics.record(call, route=route, status=status, images=call.images)
            runtime.log.request(call, route=route, status=status, error=error)

    def _noticing_start(self, send: Send) -> Send:
        async def noticing(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._runtime = self._find_runtime()
            await send(message)

        return noticing

    def _belongs_to_bentoml(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path in _OF_BENTOML or path.startswith(_ASSETS_OF_BENTOML)

    async def _answer(self, runtime: Runtime, call: Call) -> tuple[str, Reply, str | None]:
        route = ""
        try:
            route, method, handler = self._find(runtime, call)
            if call.method != method and not (method == "GET" and call.method == "HEAD") and method != "any":
                allow = ("GET", "HEAD") if method == "GET" else (method,)
                raise Refused(405, f"{route}: expected {method}, got {call.method!r:.20}", allow=allow)
            if route not in _OPEN:
                runtime.authorize(call)
            async with asyncio.timeout(runtime.settings.timeout_seconds):
                return route, await handler(runtime, call), None
        except PocketzooError as error:
            return route, reply_of_error(error), str(refusal(error))
        except TimeoutError:
            late = _late(call, runtime.settings.timeout_seconds)
            return route, reply_of_error(late), str(late)
        except Exception as error:
            runtime.log.failure(call, error)
            return route, json_reply({"error": "the server failed; its log says why"}, status=500), repr(error)

    def _find(self, runtime: Runtime, call: Call) -> tuple[str, str, Handler]:
        """The route's template, its method and its handler."""
        path = call.path
        if (found := _ROUTES.get(path)) is not None:
            return path, *found
        if path.startswith("/v1/models/") and (match := _MODEL_ROUTE.fullmatch(path)):
            parts = {key: value for key, value in match.groupdict().items() if value}
            versions = "/versions/{version}" if match["version"] else ""
            return f"/v1/models/{{model}}{versions}:predict", "POST", _bound(_predict_raw, **parts)
        if path == "/v2" or path.startswith("/v2/"):
            return oip.template(path), "any", _bound(oip.handle, tail=path[3:])
        if (reply := self._pages(runtime).get(path)) is not None:
            return path, "GET", _constant(reply)
        raise Refused(404, f"no such route: {path!r:.100}; GET /docs lists them")

    def _pages(self, runtime: Runtime) -> Mapping[str, Reply]:
        if self._static is None:
            self._static = {**docs_page.pages(), **(page.files() if runtime.settings.page else {})}
        return self._static


_OPEN = frozenset({*page.files(), *docs_page.pages(), "/docs.json", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Routes that need no key, as browsers, probes and Prometheus expect; of models they tell names and numbers."""


def _late(call: Call, seconds: float) -> Refused:
    what = "the body did not come" if call.reading else "no answer"
    return Refused(408 if call.reading else 504, f"{what} within {seconds:g} s (POCKETZOO_TIMEOUT_SECONDS)")


def _bound(handler: Callable[..., Awaitable[Reply]], **parts: Any) -> Handler:
    async def call_it(runtime: Runtime, call: Call) -> Reply:
        return await handler(runtime, call, **parts)

    return call_it


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
