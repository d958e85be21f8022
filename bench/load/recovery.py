"""When a server that was overloaded is fast again."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time

from bench.load.load_spec import Job

__all__ = ["recovery"]

_PAUSE_SECONDS = 0.1


async def recovery(job: Job, since: float) -> float | None:
    """Seconds from `since` until a fresh request was fast again: the first of three in a row; None if none was."""
    assert job.recovered_ms is not None
    raw = base64.b64decode(job.requests[0])
    tls = ssl.create_default_context() if job.tls else None
    fast: list[float] = []
    try:
        async with asyncio.timeout(max(0.0, since + job.timeout - time.perf_counter())):
            while len(fast) < 3:
                now = time.perf_counter()
                status = await _status(job, raw, tls)
                done = time.perf_counter()
                good = status == b"200" and (done - now) * 1e3 <= job.recovered_ms
                fast = [*fast, done] if good else []
    except TimeoutError:
        return None
    return round(fast[0] - since, 4)


async def _status(job: Job, raw: bytes, tls: ssl.SSLContext | None) -> bytes | None:
    """The status of one request on a connection of its own; None if there was no answer."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection(job.host, job.port, ssl=tls)
        writer.write(raw)
        return next(iter((await reader.readline()).split(b" ")[1:2]), None)
    except OSError:
        await asyncio.sleep(_PAUSE_SECONDS)
        return None
    finally:
        if writer is not None:
            writer.close()
