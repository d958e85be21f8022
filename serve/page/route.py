"""The page at `/`: images in, answers of one or two models beside each other, in any browser.

Its files are small and belong to this version of the server, so a browser asks each time whether they changed
(`Cache-Control: no-cache` and a strong ETag, RFC 9110 section 8.8.3) and mostly gets 304.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import PurePath

from serve.protocols.http import Call, Reply

__all__ = ["ICON", "POLICY", "STYLE", "files", "page_reply", "unless_known"]

ICON, STYLE = "/page/icon.svg", "/page/style.css"
"""Of every page."""

POLICY: Mapping[str, str] = {
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' blob:",
            "connect-src 'self'",
            "form-action 'none'",
            "base-uri 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of each file: what a browser lets the page do (CSP level 3): its own files, this server, nothing else."""

_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".svg": b"image/svg+xml",
}


@functools.cache
def files() -> Mapping[str, Reply]:
    """The page: path -> complete reply, read from the package once.

    Raises:
        FileNotFoundError: the package was installed without its data.
    """
    found = {}
    for file in (resources.files("serve.page") / "assets").iterdir():
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        found[path] = page_reply(file.read_bytes(), _TYPES[PurePath(file.name).suffix])
    return found


def page_reply(body: bytes, media_type: bytes) -> Reply:
    """A file of a page, with its tag and the headers of all of them."""
    always = {
        "etag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "cache-control": "no-cache",
        "vary": "accept",
        **POLICY,
    }
    headers = tuple((name.encode(), value.encode()) for name, value in always.items())
    return Reply(body=body, media_type=media_type, headers=headers)


def unless_known(reply: Reply, call: Call) -> Reply:
    """`reply`, or 304 without a body if the client has it: If-None-Match, RFC 9110 section 13.1.2."""
    known = call.headers.get(b"if-none-match", b"")
    tag = dict(reply.headers).get(b"etag")
    if tag is not None and (known.strip() == b"*" or tag in map(_strong, known.split(b","))):
        return dataclasses.replace(reply, status=304, body=b"")
    return reply


def _strong(tag: bytes) -> bytes:
    return tag.strip().removeprefix(b"W/")
