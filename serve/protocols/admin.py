"""The operator's routes. Whoever may call them is checked before.

GET    /admin/models                      everything, with pins, splits and shadows
POST   /admin/reload                      look at the models' folder now
POST   /admin/models/{name}:rollback      {"version": optional}: serve an older version, and stay with it
POST   /admin/models/{name}:unpin         follow the model's file again
PUT    /admin/models/{name}/split         {"to": model or version, "percent": 0 to 100}; DELETE ends it
PUT    /admin/models/{name}/shadow        {"to": model or version}; DELETE ends it
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import anyio.to_thread

from serve.models.repository import Repository
from serve.protocols.http import Call, Refused, Reply, json_reply
from zoo.base.documents import DocumentError, to_dataclass

__all__ = ["handle"]

T = TypeVar("T")

_MAX_BODY = 64 << 10
_COLLECTION = "models/"


@dataclass(frozen=True, kw_only=True)
class _Rollback:
    version: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Split:
    to: str
    percent: float


@dataclass(frozen=True, kw_only=True)
class _Shadow:
    to: str


class _Runtime(Protocol):
    @property
    def repository(self) -> Repository: ...

    async def read(self, call: Call, limit: int, *, admit: bool) -> bytes: ...


async def handle(runtime: _Runtime, call: Call, rest: str) -> Reply:
    """Answer one request below /admin/.

    Args:
        runtime: the worker's.
        call: the request.
        rest: its path after `/admin/`, with percent-escapes decoded.

    Returns:
        The report of a reload; for everything about one model, its entry of GET /admin/models.

    Raises:
        Refused: 400 for a malformed body, 404 for an unknown route, model or version, 405 for another method, 422 for
            models that cannot stand in for each other, 503 if a version fails a check or the state cannot be written.
    """
    repository = runtime.repository
    if rest == "models":
        _expect(call, "GET")
        return json_reply(await _in_thread(functools.partial(repository.describe, operator=True)))
    if rest == "reload":
        _expect(call, "POST")
        return json_reply(asdict(await _in_thread(repository.reload)))
    name, action = _parse(call, rest)
    change = await _change(runtime, call, name, action)
    await _in_thread(change)
    return json_reply(await _in_thread(functools.partial(_entry, repository, name)))


async def _change(runtime: _Runtime, call: Call, name: str, action: str) -> Callable[[], object]:
    """What a request wants to be done to one model."""
    repository = runtime.repository
    if action == "rollback":
        _expect(call, "POST")
        version = _body(_Rollback, await runtime.read(call, _MAX_BODY, admit=False), "optionally `version`").version
        return functools.partial(repository.rollback, name, version)
    if action == "unpin":
        _expect(call, "POST")
        return functools.partial(repository.unpin, name)
    _expect(call, "PUT", "DELETE")
    if call.method == "DELETE":
        return functools.partial(repository.clear_split if action == "split" else repository.clear_shadow, name)
    body = await runtime.read(call, _MAX_BODY, admit=False)
    if action == "split":
        split = _body(_Split, body, "`to`, a model or a version, and `percent`")
        return functools.partial(repository.set_split, name, to=split.to, percent=split.percent)
    return functools.partial(repository.set_shadow, name, to=_body(_Shadow, body, "`to`, a model or a version").to)


def _parse(call: Call, rest: str) -> tuple[str, str]:
    """Name of the model, which may have a slash in it, and what is to be done."""
    if rest.startswith(_COLLECTION):
        rest = rest.removeprefix(_COLLECTION)
        for separator, actions in ((":", ("rollback", "unpin")), ("/", ("split", "shadow"))):
            name, _, action = rest.rpartition(separator)
            if name and action in actions:
                return name, action
    raise Refused(
        404,
        f"no such route: {call.path!r:.200}; there are GET /admin/models, POST /admin/reload, "
        "POST /admin/models/NAME:rollback and NAME:unpin, PUT and DELETE /admin/models/NAME/split and NAME/shadow",
    )


def _expect(call: Call, *methods: str) -> None:
    if call.method not in methods:
        raise Refused(405, f"{call.path!r:.200}: expected {' or '.join(methods)}, got {call.method}", allow=methods)


def _body(kind: type[T], body: bytes, wanted: str) -> T:
    try:
        return to_dataclass(kind, json.loads(body) if body.strip() else {}, "body")
    except (DocumentError, ValueError, RecursionError) as error:
        raise Refused(400, f"expected a JSON object with {wanted}: {error}") from error


def _entry(repository: Repository, name: str) -> dict[str, Any]:
    for model in repository.describe(operator=True)["models"]:
        if model["name"] == name:
            return dict(model)
    raise Refused(404, f"the model {name!r} has just been removed")


async def _in_thread(work: Callable[[], T]) -> T:
    return await anyio.to_thread.run_sync(work)
