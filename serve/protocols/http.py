"""One HTTP request and its reply, as small as the fast path needs them; and the errors that have a status."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.types import Receive

from serve.observe.trace import Trace
from zoo.base.errors import ImageError, ImageFormatError, ImageSizeError, PocketzooError, UsageError

__all__ = ["JSON", "Call", "Refused", "Reply", "json_reply", "refusal", "reply_of_error", "request_id"]

JSON = b"application/json"

_encode = msgspec.json.Encoder().encode
_SANE_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}").fullmatch


class Refused(PocketzooError):  # noqa: N818  # a refusal is what it is to the client
    """A request that gets no answer, with its status and, where it may be repeated, when or with which methods."""

    def __init__(
        self, status: int, sentence: str, *, retry_after: float | None = None, allow: tuple[str, ...] = ()
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after
        self.allow = allow


@dataclass(slots=True, kw_only=True)
class Call:
    """One request on its way through the server."""

    receive: Receive
    method: str
    path: str
    headers: Mapping[bytes, bytes]
    """Lower-case name -> value; of repeated ones the last."""
    request_id: str
    """What logs and answers call it: the client's X-Request-Id if it is sane, else drawn here."""
    started: float = field(default_factory=time.perf_counter)
    trace: Trace | None = None
    """The client's trace that it belongs to."""
    key: str | None = None
    """Name of the API key it came with."""
    client: str | None = None
    """The address that it came from; a proxy's, where there is one."""
    model: str | None = None
    """`name` of the model that answered; for the log and the metrics."""
    version: str | None = None
    stages: dict[str, float] = field(default_factory=dict)
    """Milliseconds per stage: read, load, queue, decode, preprocess, infer, encode; for the log and the metrics."""

    images: int = 0
    """Images, or examples of a tensor, that were asked about; for the log and the metrics."""
    reading: bool = False
    """Whether its body is still awaited."""
    buffered: int = 0
    """Bytes of the body that are held in memory on its behalf."""

    def elapsed(self) -> float:
        """Milliseconds since the request's headers were read."""
        return (time.perf_counter() - self.started) * 1e3

    def gone(self) -> bool:
        """Whether the client has closed the connection, as far as the web server tells.

        The method `receive` belongs to uvicorn's object for the request, which knows it without waiting; another web
        server does not, and then every request counts as wanted.
        """
        cycle = getattr(self.receive, "__self__", None)
        if getattr(cycle, "disconnected", False):
            return True
        # Of pipelined requests, uvicorn tells only the last.
        transport = getattr(cycle, "transport", None)
        return transport is not None and bool(transport.is_closing())

    @property
    def media_type(self) -> str:
        """The Content-Type without its parameters, lower case; "" if there is none."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")

    @property
    def content_length(self) -> int | None:
        """What the client announced, if it did."""
        text = self.headers.get(b"content-length", b"")
        # Longer numbers than any real length cost time to read, and Python refuses the longest.
        return int(text) if text.isdigit() and len(text) < 20 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A complete answer."""

    status: int = 200
    body: bytes = b""
    media_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """What logs and answers call a request: the client's X-Request-Id, else 24 drawn hexadecimal digits.

    The client's is taken where it has 1 to 128 of the characters `A-Z a-z 0-9 . _ ~ : / + = @ -`.
    """
    if (sent := headers.get(b"x-request-id")) is not None and _SANE_ID(sent):
        return sent.decode("ascii")
    return os.urandom(12).hex()


def json_reply(value: Any, *, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    """`value` as JSON, without spaces."""
    try:
        body = _encode(value)
    except UnicodeEncodeError:  # half of a surrogate pair, of which a question mark becomes
        body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return Reply(status=status, body=body, headers=headers)


def refusal(error: PocketzooError) -> Refused:
    """The status of an error: 4xx where the request is at fault, 503 where the model is."""
    if isinstance(error, Refused):
        return error if error.status != 503 or error.retry_after is not None else _later(error)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 503)
    return Refused(status, str(error)) if status != 503 else _later(error)


def _later(error: PocketzooError) -> Refused:
    # A model that cannot be served is looked at again within a second or so.
    return Refused(503, str(error), retry_after=1.0)


_STATUS: tuple[tuple[type[PocketzooError], int], ...] = (
    (ImageFormatError, 415),
    (ImageSizeError, 413),
    (ImageError, 422),
    (UsageError, 400),
)


def reply_of_error(error: PocketzooError) -> Reply:
    """`{"error": "a sentence"}` with the error's status, and Retry-After (in seconds, rounded up) if it is known."""
    refused = refusal(error)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if refused.retry_after is not None:
        headers = ((b"retry-after", str(max(1, math.ceil(refused.retry_after))).encode()),)
    # These two are required by RFC 9110, sections 15.5.2 and 15.5.6.
    if refused.status == 401:
        headers = (*headers, (b"www-authenticate", b"Bearer"))
    if refused.allow:
        headers = (*headers, (b"allow", ", ".join(refused.allow).encode()))
    return json_reply({"error": str(refused)}, status=refused.status, headers=headers)
