"""Requests that are wrong in many ways, from one seed: the material of the fault `malformed`."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from tests.soak.harness import head

__all__ = ["ALLOWED", "BROKEN_FRAMING", "KINDS", "malformed"]

_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "application/octet-stream", "text/plain", "", "a/b/c")
_BOUNDARY = "qqq"


def malformed(seed: int, count: int, model: str) -> Iterator[tuple[str, bytes]]:
    """`count` requests with the names of their kinds; most are wrong, a few survive their mutation."""
    rng = random.Random(seed)
    files = _files()
    names = list(KINDS)
    for place in range(count):
        name = names[place % len(names)]
        yield name, KINDS[name](rng, files, model)


def _files() -> list[tuple[str, bytes]]:
    """Images as JPEG (plain and progressive), PNG, WebP and GIF, with their media types."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    found = []
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("GIF", {})):
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        found.append((f"image/{kind.lower()}", stream.getvalue()))
    return found


def _mutate(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut out, repeat or replace bytes in one to four places, and sometimes cut the end off."""
    mutable = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not mutable:
            break
        place, length = rng.randrange(len(mutable)), rng.randint(1, 16)
        change = rng.randrange(4)
        if change == 0:
            mutable[place] ^= 1 << rng.randrange(8)
        elif change == 1:
            del mutable[place : place + length]
        elif change == 2:
            mutable[place:place] = mutable[place : place + length] * rng.randint(1, 8)
        else:
            mutable[place : place + length] = rng.randbytes(length)
    return bytes(mutable[: rng.randrange(len(mutable) + 1)] if rng.random() < 0.25 else mutable)


def _post(path: str, body: bytes, media: str, more: str = "") -> bytes:
    return head(path, len(body), media=media, more=more) + body


def _picture(rng: random.Random, files: list[tuple[str, bytes]], model: str) -> bytes:
    media, data = rng.choice(files)
    return _post("/v1/predict", _mutate(rng, data), media)


def _random_body(rng: random.Random, files: list[tuple[str, bytes]], model: str) -> bytes:
    path = rng.choice(("/v1/predict", "/predict", f"/v1/models/{model}:predict", f"/v2/models/{model}/infer"))
    return _post(path, rng.randbytes(rng.choice((0, 1, 10, 1000, 20_000))), rng.choice(_TYPES))


def _form(rng: random.Random, files: list[tuple[str, bytes]], model: str) -> bytes:
    _, data = rng.choice(files)
    name = rng.choice(("images", "image", "model", "", 'im"ages', "images\r\nX: y"))
    filename = rng.choice(('; filename="a.jpg"', "", '; filename="../../etc/passwd"', "; filename*=UTF-8''%00"))
    part = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'.encode() + data
    body = part * rng.choice((1, 1, 2, 40)) + f"\r\n--{_BOUNDARY}--\r\n".encode()
    media = rng.choice(
        (f"multipart/form-data; boundary={_BOUNDARY}", "multipart/form-data", "multipart/form-data; boundary=")
    )
    return _post("/predict", _mutate(rng, body) if rng.random() < 0.7 else body, media)


def _lengths(rng: random.Random, files: list[tuple[str, bytes]], model: str) -> bytes:
    _, data = rng.choice(files)
    framing = rng.choice(
        (
            "Content-Length: -1",
            "Content-Length: many",
            "Content-Length: 1e3",
            "Content-Length: 5\r\nContent-Length: 6",
            f"Content-Length: {10**30}",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: gzip",
        )
    )
    start = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n{framing}\r\n\r\n".encode()
    return start + rng.choice((data, b"5\r\nab", b"zz\r\n\r\n", b"-1\r\n\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n"))


def _routes(rng: random.Random, files: list[tuple[str, bytes]], model: str) -> bytes:
    _, data = rng.choice(files)
    name = rng.choice(("../../etc/passwd", "%00", "%2e%2e%2f", "a" * 5000, "ünder", "", model + "x", "*", "{model}"))
    path = rng.choice(
        (
            f"/v1/models/{name}:predict",
            f"/v1/models/{model}/versions/{name}:predict",
            f"/v2/models/{name}/infer",
            f"/{name}",
        )
    )
    method = rng.choice(("POST", "POST", "GET", "PUT", "DELETE", "BREW", "OPTIONS"))
    start = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    return start.encode("utf-8") + data


def _headers(rng: random.Random, files: list[tuple[str, bytes]], model: str) -> bytes:
    _, data = rng.choice(files)
    more = rng.choice(
        (
            "X-Request-Id: " + "x" * 3000,
            "X-Request-Id: \x01\x7f",
            "traceparent: 00-zz-zz-01",
            "Authorization: Bearer",
            "Content-Encoding: gzip",
            "Expect: 418-teapot",
            "Accept: application/vnd.bentoml+pickle",
            "Inference-Header-Content-Length: -5",
            "".join(f"X-{place}: y\r\n" for place in range(300)).rstrip(),
        )
    )
    return _post("/v1/predict", data, rng.choice((*_TYPES, "application/vnd.bentoml+pickle")), more + "\r\n")


def _large_headers(rng: random.Random, files: list[tuple[str, bytes]], model: str) -> bytes:
    _, data = rng.choice(files)
    length = rng.choice((10_000, 60_000, 70_000, 100_000, 1_000_000))
    more = rng.choice(("X-Big: " + "y" * length, "X-Small: y\r\n" * (length // 12) + "X-Last: y")) + "\r\n"
    return _post("/v1/predict", data, "image/png", more)


def _infer(rng: random.Random, files: list[tuple[str, bytes]], model: str) -> bytes:
    document: dict[str, Any] = {
        "id": rng.choice(("a", 5, None, "x" * 5000)),
        "inputs": [
            {
                "name": rng.choice(("image", "image_bytes", "", None, 7)),
                "datatype": rng.choice(("FP32", "BYTES", "INT8", "", None, [])),
                "shape": rng.choice(([1, 3, 8, 8], [1], [-1], [2**62, 2**62], [], "1", None, [1.5], [0, 3, 8, 8])),
                "data": rng.choice(([0.5] * 192, [1e999], ["x"], [[[]]], None, "text", [None] * 192)),
                "parameters": rng.choice(({}, {"binary_data_size": rng.choice((-1, 4, 10**12, "4"))}, None, [])),
            }
        ]
        * rng.choice((0, 1, 1, 1, 2)),
        "outputs": rng.choice(([], None, [{"name": "nothing"}], [{}], "logits", [{"name": "probabilities"}])),
    }
    body = json.dumps(document).encode()
    length = rng.choice((len(body), 0, -1, len(body) + 100, 3, "x"))
    more = f"Inference-Header-Content-Length: {length}\r\n" if rng.random() < 0.5 else ""
    body = _mutate(rng, body) if rng.random() < 0.4 else body
    return _post(f"/v2/models/{model}/infer", body + rng.randbytes(rng.choice((0, 4, 768))), "application/json", more)


KINDS: dict[str, Callable[[random.Random, list[tuple[str, bytes]], str], bytes]] = {
    "mutated image": _picture,
    "random body": _random_body,
    "form": _form,
    "lengths": _lengths,
    "routes": _routes,
    "headers": _headers,
    "large headers": _large_headers,
    "infer": _infer,
}
"""Name of a kind -> what makes one request of it."""

BROKEN_FRAMING = frozenset({"lengths"})
"""Kinds whose announced length is not what is sent."""

_UNDECODABLE = frozenset({"413", "415", "422"})

ALLOWED: dict[str, frozenset[str]] = {
    # A mutation may leave an image whole, change its size, or its first bytes.
    "mutated image": _UNDECODABLE | {"200"},
    # 400: a tensor request that is none, and an empty body.
    "random body": frozenset({"400", "413", "415", "422"}),
    "form": _UNDECODABLE | {"200", "400"},
    "lengths": frozenset({"400", "501", "closed"}),
    # 200: GET / and what is answered without a body; 400: a target that is no URL.
    "routes": frozenset({"200", "400", "404", "405"}),
    "headers": frozenset({"200", "400", "415"}),
    # The limit is of what has come before a request was seen in it, so that much more is cut off, not answered.
    "large headers": frozenset({"200", "400", "431", "closed"}),
    "infer": frozenset({"200", "400", "404", "422"}),
}
"""What a request of each kind may get; see :func:`tests.soak.harness.exchange`."""
