"""Faults of what clients send: malformed, cut off, slow, too large."""

from __future__ import annotations

import contextlib
import io
import select
import socket
import struct
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from bench.server import Memory, watching
from bench.soak_case import FLAT_MB, Case, Result, answer, connect, exchange, head, load
from bench.soak_malformed import BROKEN_FRAMING, malformed

__all__ = ["fault_big_bodies", "fault_bomb", "fault_malformed", "fault_slow_clients", "fault_truncated"]


def fault_malformed(case: Case) -> Result:
    """Malformed requests of every kind: each gets a status below 500, or, where it is no HTTP, is cut off."""
    result = Result(name="malformed requests")
    with case.same_workers(result):
        for name, data in malformed(case.seed, case.many(10_000, 420), "tiny"):
            # A body that is shorter than announced would be waited for.
            found = exchange(case.server.port, data, then="half" if name in BROKEN_FRAMING else "wait")
            result.counts[found] += 1
            fine = not found.startswith("5") and found != "timeout" and (found != "closed" or name in BROKEN_FRAMING)
            result.expect(fine, f"{name}: {found} for {data[:300]!r}")
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
    result.expect(not result.counts["200"], "half a picture got an answer")
    _expect_flat(result, watch.memory)
    return result


def fault_slow_clients(case: Case) -> Result:
    """Half of the slow clients never finish their headers, half their bodies; others go on being served."""
    result = Result(name="slow clients")
    count, seconds = case.many(200, 100), case.many(40, 2)
    starts = (head("/v1/predict", 5000), b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    with case.same_workers(result), contextlib.ExitStack() as opened:
        slow = [opened.enter_context(connect(case.server.port)) for _ in range(count)]
        for place, stream in enumerate(slow):
            stream.sendall(starts[place % 2])
        with load(case, connections=4) as client:
            ended = _drip(slow, seconds)
            found = client.stop()
    # A body has POCKETZOO_TIMEOUT_SECONDS, 30 by default; headers alone hold nothing but a socket.
    result.expect(
        case.short or ended["408"] == count // 2, f"slow bodies got {dict(ended)}, expected {count // 2} x 408"
    )
    errors = result.take(found)
    result.expect(not errors and set(found["status"]) == {"200"}, f"others got {found['status']}, {errors}")
    result.detail.append(
        f"{count} slow clients at 10 bytes/s, {found['rate']:.0f} others/s with p99 {found['ok_ms']['p99']:.1f} ms; "
        f"{sum(ended.values())} slow ones ended by the server: {dict(ended)}"
    )
    return result


def _drip(streams: list[socket.socket], seconds: float) -> Counter[str]:
    """One byte per tenth of a second on each; what those got that the server answered or closed."""
    ended: Counter[str] = Counter()
    alive = list(streams)
    end = time.perf_counter() + seconds
    while alive and time.perf_counter() < end:
        readable, _, _ = select.select(alive, [], [], 0.1)
        for stream in readable:
            ended[answer(stream)] += 1
            alive.remove(stream)
        for stream in alive:
            with contextlib.suppress(OSError):
                stream.send(b"x")
    return ended


def fault_bomb(case: Case) -> Result:
    """Small files of very large pictures: refused from their header, without the memory to decode them."""
    result = Result(name="decompression bombs")
    files = [(f"image/{name}", data) for name, data in _claims(50_000).items()]
    files.append(("image/png", _compressible(case.many(20_000, 6_000))))
    with case.same_workers(result), watching(case.server, every=0.02) as watch:
        for media, data in files * case.many(10, 2):
            for path in ("/v1/predict", "/predict"):
                found = exchange(case.server.port, _upload(path, media, data))
                result.counts[found] += 1
                result.expect(found == "413", f"{path}, {media}: {found}, expected 413")
    _expect_flat(result, watch.memory)
    return result


def _upload(path: str, media: str, data: bytes) -> bytes:
    if path != "/predict":
        return head(path, len(data), media=media) + data
    start = f'--q\r\nContent-Disposition: form-data; name="images"; filename="a"\r\nContent-Type: {media}\r\n\r\n'
    body = start.encode() + data + b"\r\n--q--\r\n"
    return head(path, len(body), media="multipart/form-data; boundary=q") + body


def _claims(edge: int) -> dict[str, bytes]:
    """Files whose headers claim a picture of `edge` x `edge`."""
    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    png = (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + _chunk(b"IEND")
    )
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(stream, "GIF")
    gif = bytearray(stream.getvalue())
    gif[6:10] = struct.pack("<HH", edge, edge)
    # The canvas of an extended WebP file: 24 bits each of width - 1 and height - 1 (WebP container specification).
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 4), dtype=np.uint8)).save(stream, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    webp = bytearray(stream.getvalue())
    place = webp.index(b"VP8X") + 12
    webp[place : place + 6] = 2 * (edge - 1).to_bytes(3, "little")
    return {"png": png, "gif": bytes(gif), "webp": bytes(webp)}


def _compressible(edge: int) -> bytes:
    """A whole PNG file of `edge` x `edge` black RGB pixels; never in memory at once."""
    packer, parts = zlib.compressobj(9), []
    row = b"\0" * (1 + 3 * edge)
    for _ in range(edge):
        parts.append(packer.compress(row))
    data = b"".join([*parts, packer.flush()])
    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND")


def _chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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
    _expect_flat(result, watch.memory)
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


def _expect_flat(result: Result, memory: Memory | None) -> None:
    assert memory is not None
    result.detail.append(f"resident {memory.before:.0f} MB, {memory.highest:.0f} at most, {memory.after:.0f} after")
    result.expect(memory.after - memory.before <= FLAT_MB, f"memory grew by more than {FLAT_MB:.0f} MB")
