"""Faults of what clients send: malformed, cut off, too large."""

from __future__ import annotations

import select
from concurrent.futures import ThreadPoolExecutor

from bench.serving.server import watching
from tests.soak.harness import Case, Result, answer, connect, exchange, expect_memory, head
from tests.soak.malformed import ALLOWED, BROKEN_FRAMING, malformed

__all__ = ["fault_big_bodies", "fault_malformed", "fault_truncated"]

_BIG_BODIES_MB = 134.2
"""POCKETZOO_MAX_BUFFERED_BYTES, by default: bodies that were not announced may fill it before they are refused."""


def fault_malformed(case: Case) -> Result:
    """Malformed requests of every kind: each gets a status that fits its kind, or, where it is no HTTP, is cut off."""
    result = Result(name="malformed requests")
    with case.same_workers(result):
        for name, data in malformed(case.seed, case.many(10_000, 420), "tiny"):
            # A body that is shorter than announced would be waited for.
            found = exchange(case.server.port, data, then="half" if name in BROKEN_FRAMING else "wait")
            result.counts[found] += 1
            result.expect(found in ALLOWED[name], f"{name}: {found} for {data[:300]!r}")
            if len(result.detail) > 5:
                break
    return result


def fault_truncated(case: Case) -> Result:
    """Uploads that end in the middle: the connection half closed, or reset."""
    result = Result(name="truncated uploads")
    body = case.picture * 50
    form = head("/predict", len(body), media="multipart/form-data; boundary=q")
    begun = b'--q\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    starts = (
        head("/v1/predict", len(body)) + body[: len(body) // 2],
        head("/v1/predict", None) + b"ff\r\n" + body[:50],
        head("/v1/predict", len(body))[:60],
        form + begun + body[:1000],
        head("/v2/models/tiny/infer", len(body), media="application/json") + b'{"inputs": [',
    )
    with case.same_workers(result), watching(case.server) as watch:
        for place in range(case.many(1000, 40)):
            then = "reset" if place % 2 else "half"
            result.counts[exchange(case.server.port, starts[place // 2 % len(starts)], then=then)] += 1
    result.expect_no_5xx()
    result.expect(not result.counts["timeout"], "a connection that the client closed was kept open")
    result.expect(not result.counts["200"], "half an image got an answer")
    expect_memory(result, watch.memory)
    return result


def fault_big_bodies(case: Case) -> Result:
    """Bodies of 100 MB, announced and chunked, several at once: 413 (or 503) within the limit of memory."""
    result = Result(name="100 MB bodies")
    plans = [
        (path, media, chunked)
        for path, media in (
            ("/v1/predict", "image/jpeg"),
            ("/predict", "multipart/form-data; boundary=q"),
            ("/v2/models/tiny/infer", "application/octet-stream"),
        )
        for chunked in (False, True)
    ]
    with case.same_workers(result), watching(case.server, every=0.02) as watch, ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda plan: (plan, _send_much(case, *plan)), plans * case.many(5, 1))
        for plan, status in found:
            result.counts[status] += 1
            # Several chunked bodies, whose length nobody announced, may fill POCKETZOO_MAX_BUFFERED_BYTES before their
            # own limit: then the server says 503.
            allowed = ("413", "503") if plan[2] else ("413",)
            result.expect(status in allowed, f"{plan}: {status}, expected {' or '.join(allowed)}")
    # What is read until the limit is reached is given back by the time the next requests came.
    expect_memory(result, watch.memory, more=_BIG_BODIES_MB)
    return result


def _send_much(case: Case, path: str, media: str, chunked: bool) -> str:
    size, block = 100_000_000, bytes(1 << 16)
    framed = f"{len(block):x}\r\n".encode() + block + b"\r\n" if chunked else block
    with connect(case.server.port) as stream:
        stream.sendall(head(path, None if chunked else size, media=media))
        for _ in range(size // len(block)):
            readable, _, _ = select.select([stream], [], [], 0)
            if readable:
                break
            try:
                stream.sendall(framed)
            except ConnectionError:
                break
        return answer(stream)
