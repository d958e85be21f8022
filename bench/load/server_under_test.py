"""A running server that is to be measured: its address, the requests it gets, and what answers them."""

from __future__ import annotations

import http.client
import io
import json
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from PIL import Image

from bench.load.load_spec import prepare
from zoo.base.errors import ArtefactError, UsageError

__all__ = ["Answer", "Target", "ask", "parse_url", "requests_of"]

_SECONDS = 30.0
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where requests go."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""
    """Of every path, without a slash at its end."""
    model: str | None = None
    """None: the one that the server answers with by default."""
    key: str | None = field(default=None, repr=False)
    """An API key, sent as X-API-Key; never written down."""

    @property
    def url(self) -> str:
        """The server's address, without a user's name and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"

    @property
    def path(self) -> str:
        """Of every request."""
        tail = "/v1/predict" if self.model is None else f"/v1/models/{quote(self.model, safe='')}:predict"
        return self.prefix + tail

    def headers(self, image: bytes) -> dict[str, str]:
        """Of a request with an image."""
        with Image.open(io.BytesIO(image)) as picture:
            kind = Image.MIME.get(picture.format or "", "application/octet-stream")
        return {"Content-Type": kind} | ({"X-API-Key": self.key} if self.key else {})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What answered."""

    model: str
    version: str
    digest: str
    """SHA-256 of the artefact."""


def parse_url(url: str, *, model: str | None = None, key: str | None = None) -> Target:
    """A target from its address.

    Args:
        url: like `http://127.0.0.1:3000`; a path in it precedes every path.
        model: by name; None: the server's default.
        key: an API key.

    Raises:
        UsageError: no address of a server.
    """
    wrong = UsageError(f"{url!r}: expected the address of a server, like http://127.0.0.1:3000")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in _PORTS or not parts.hostname or parts.query or parts.fragment:
        raise wrong
    if key is not None and not (key.isascii() and key.isprintable()):
        raise UsageError("--key: expected printable ASCII characters; `pocketzoo key` prints one that fits")
    return Target(
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        tls=parts.scheme == "https",
        prefix=parts.path.rstrip("/"),
        model=model,
        key=key,
    )


def requests_of(target: Target, images: Sequence[bytes]) -> tuple[str, ...]:
    """A request per image, for bench.load.load_spec.Job."""
    host = target.url.partition("://")[2].partition("/")[0]
    return tuple(prepare("POST", target.path, target.headers(image), image, host=host) for image in images)


def ask(target: Target, image: bytes) -> Answer:
    """Send one image: what answers?

    Raises:
        ArtefactError: no server, an answer other than 200, or one that does not say which model it is from.
    """
    status, body = _post(target, image)
    try:
        found: Any = json.loads(body)
    except ValueError:
        found = None
    if status != 200:
        said = found.get("error") if isinstance(found, dict) else None
        raise ArtefactError(f"{target.url}{_tail(target)}: {status}: {said or _excerpt(body)}{_remedy(status)}")
    try:
        return Answer(model=str(found["model"]), version=str(found["version"]), digest=str(found["digest"]))
    except (KeyError, TypeError) as error:
        raise ArtefactError(
            f"{target.url}{_tail(target)}: expected an answer with model, version and digest, got {_excerpt(body)}; "
            "is it the server that `bentoml serve` starts?"
        ) from error


def _tail(target: Target) -> str:
    return target.path.removeprefix(target.prefix)


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "; with pocketzoo bench load: --key KEY, or the environment variable POCKETZOO_KEY"
    return ""


def _excerpt(body: bytes) -> str:
    return repr(body[:200].decode("utf-8", "replace"))


def _post(target: Target, image: bytes) -> tuple[int, bytes]:
    kind = http.client.HTTPSConnection if target.tls else http.client.HTTPConnection
    connection = kind(target.host, target.port, timeout=_SECONDS)
    try:
        connection.request("POST", target.path, image, target.headers(image))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except ssl.SSLError as error:
        raise ArtefactError(f"{target.url}: no TLS with it: {error}; is it an http:// address?") from error
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise ArtefactError(
            f"{target.url}: no server answers there ({reason}); start one with `bentoml serve`, or name another address"
        ) from error
    finally:
        connection.close()
