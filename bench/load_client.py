"""An HTTP/1.1 load generator in a process of its own, cheap enough to share the cores with the server it measures.

Run as `python -m bench.load_client`: it reads one :class:`bench.load_job.Job` as JSON from standard input and prints a
result as JSON. SIGTERM ends a run early, with its result.

A closed loop keeps every connection busy: the next request goes out when the answer is in. An open loop sends at
Poisson arrivals whatever the server does, as MLPerf's Server scenario; latency counts from the scheduled arrival, so
that a server which stalls is charged for everything that had to wait (no coordinated omission).
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import httptools
import numpy as np

from bench.load_job import Job, Record, summary

__all__ = ["run"]

_REFUSALS = (429, 503)
_SWEEP_SECONDS = 0.1


class _Connection(asyncio.Protocol):
    """One keep-alive connection: at most one request on its way."""

    __slots__ = ("busy", "parser", "run", "scheduled", "seen", "transport", "written")

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.busy = False
        self.scheduled = self.written = 0.0
        self.seen: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by behaviour, not by class.
        self.transport = cast(asyncio.Transport, transport)
        self.run.record.opened += 1
        self.run.free(self)

    @property
    def counts(self) -> bool:
        """Whether its request was sent after the warm-up."""
        return self.written >= self.run.record.begin

    def send(self, scheduled: float) -> None:
        assert self.transport is not None
        run = self.run
        self.busy = True
        self.scheduled = scheduled
        request = run.next_request()
        self.written = time.perf_counter()
        self.transport.write(request)
        run.record.bytes_out += len(request)

    def data_received(self, data: bytes) -> None:
        self.run.record.bytes_in += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.run.fail(self, "parse")
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.counts and name.lower() == b"retry-after":
            self.run.record.retry_after += 1

    def on_body(self, body: bytes) -> None:
        if self.run.job.tally is not None:
            self.seen.append(body)

    def on_message_complete(self) -> None:
        keep = self.parser.should_keep_alive()
        self.run.answered(self, self.parser.get_status_code(), keep)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.run.lost(self)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class _Run:
    """A run: its connections, what waits for one, and what was found."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.job = job
        self.loop = loop
        self.requests = [base64.b64decode(text) for text in job.requests]
        self.turn = 0
        begin = time.perf_counter() + job.warmup
        self.record = Record(begin=begin, end=begin + job.seconds)
        self.all: set[_Connection] = set()
        self.idle: list[_Connection] = []
        self.waiting: deque[float] = deque()
        """Scheduled arrivals that no connection has taken yet."""
        self.opening = 0
        self.arrivals_over = job.rate is None
        self.stopped = asyncio.Event()
        self.done = asyncio.Event()

    def next_request(self) -> bytes:
        request = self.requests[self.turn]
        self.turn = (self.turn + 1) % len(self.requests)
        return request

    @property
    def closed_loop(self) -> bool:
        return self.job.rate is None

    @property
    def sending(self) -> bool:
        return not self.stopped.is_set() and time.perf_counter() < self.record.end

    def free(self, connection: _Connection) -> None:
        """Give a connection its next request, or let it rest."""
        if self.closed_loop:
            if self.sending:
                connection.send(time.perf_counter())
            else:
                self._check_done()
        elif self.waiting:
            self._take(connection, self.waiting.popleft())
        else:
            self.idle.append(connection)
            self._check_done()

    def _take(self, connection: _Connection, scheduled: float) -> None:
        connection.send(scheduled)
        self.record.late_ms.append((connection.written - scheduled) * 1e3)

    def arrive(self, scheduled: Sequence[float]) -> None:
        """Send what is due, on idle connections, on new ones up to the limit, or as soon as one is free."""
        for moment in scheduled:
            while self.idle and self.idle[-1].transport is None:
                self.idle.pop()
            if self.idle:
                self._take(self.idle.pop(), moment)
                continue
            self.waiting.append(moment)
            if self.opening < len(self.waiting) and len(self.all) + self.opening < self.job.connections:
                self.open()

    def open(self) -> None:
        self.opening += 1
        self.loop.create_task(self._open())

    async def _open(self) -> None:
        connection = _Connection(self)
        try:
            self.all.add(connection)
            await self.loop.create_connection(lambda: connection, self.job.host, self.job.port)
        except OSError:
            self.all.discard(connection)
            self.record.errors["connect"] += 1
            # A closed loop tries again; of an open one, the arrival that asked for the connection is lost.
            if self.closed_loop and self.sending:
                self.loop.call_later(0.02, self.open)
            elif self.waiting:
                self.waiting.popleft()
        finally:
            self.opening -= 1
            self._check_done()

    def answered(self, connection: _Connection, status: int, keep: bool) -> None:
        record, now = self.record, time.perf_counter()
        connection.busy = False
        if status == 200:
            record.finished += record.begin <= now <= record.end
        if connection.counts:
            record.status[status] += 1
            milliseconds = (now - connection.scheduled) * 1e3
            if status == 200:
                record.ok_ms.append(milliseconds)
            elif status in _REFUSALS:
                record.refused_ms.append(milliseconds)
            else:
                record.other_ms.append(milliseconds)
            if status == 200 and self.job.tally is not None:
                record.tally[str(json.loads(b"".join(connection.seen)).get(self.job.tally))] += 1
        connection.seen.clear()
        if keep and connection.transport is not None:
            self.free(connection)
        else:
            self.all.discard(connection)
            connection.abort()
            self._replace()

    def fail(self, connection: _Connection, kind: str) -> None:
        if connection.busy:
            connection.busy = False
            self.record.errors[kind] += 1

    def lost(self, connection: _Connection) -> None:
        self.fail(connection, "reset")
        if connection in self.all:
            self.all.discard(connection)
            self._replace()

    def _replace(self) -> None:
        if (self.closed_loop and self.sending) or len(self.waiting) > self.opening:
            self.open()
        self._check_done()

    def sweep(self) -> None:
        """Give up on answers that take too long; notice the end of a run whose connections rest."""
        limit = time.perf_counter() - self.job.timeout
        for connection in [one for one in self.all if one.busy and one.written < limit]:
            self.fail(connection, "timeout")
            connection.abort()
        self._check_done()

    def stop(self) -> None:
        self.stopped.set()
        self._check_done()

    def _check_done(self) -> None:
        over = not self.sending and (self.arrivals_over or self.stopped.is_set())
        quiet = not self.opening and not any(connection.busy for connection in self.all)
        if over and quiet and (not self.waiting or self.stopped.is_set()):
            self.done.set()

    def arrivals(self) -> None:
        """In a thread of its own, as the loop's timers are a millisecond coarse: wake the loop for every arrival."""
        assert self.job.rate is not None
        random = np.random.default_rng(self.job.seed)
        length = self.job.warmup + self.job.seconds
        gaps = random.exponential(1 / self.job.rate, size=int(length * self.job.rate * 1.5) + 100)
        moments = (np.cumsum(gaps) + self.record.begin - self.job.warmup).tolist()
        place = 0
        while not self.stopped.is_set() and moments[place] < self.record.end:
            time.sleep(max(0.0, moments[place] - time.perf_counter()))
            now, first = time.perf_counter(), place
            while moments[place] <= now and moments[place] < self.record.end:
                place += 1
            if place > first:
                self.loop.call_soon_threadsafe(self.arrive, moments[first:place])
        self.loop.call_soon_threadsafe(self._no_more_arrivals)

    def _no_more_arrivals(self) -> None:
        self.arrivals_over = True
        self._check_done()


async def _recovery(job: Job, since: float) -> float | None:
    """Seconds from `since` until a fresh request was fast again: the first of three in a row; None if none was."""
    assert job.recovered_ms is not None
    raw = base64.b64decode(job.requests[0])
    fast: list[float] = []
    try:
        async with asyncio.timeout(max(0.0, since + job.timeout - time.perf_counter())):
            while len(fast) < 3:
                now = time.perf_counter()
                status = await _status(job, raw)
                done = time.perf_counter()
                good = status == b"200" and (done - now) * 1e3 <= job.recovered_ms
                fast = [*fast, done] if good else []
    except TimeoutError:
        return None
    return round(fast[0] - since, 4)


async def _status(job: Job, raw: bytes) -> bytes | None:
    """The status of one request on a connection of its own; None if there was no answer."""
    writer = None
    try:
        reader, writer = await asyncio.open_connection(job.host, job.port)
        writer.write(raw)
        return next(iter((await reader.readline()).split(b" ")[1:2]), None)
    except ConnectionError:
        await asyncio.sleep(_SWEEP_SECONDS)
        return None
    finally:
        if writer is not None:
            writer.close()


async def run(job: Job) -> dict[str, Any]:
    """Do a job: counts per status and kind of error, successes per second, latencies in milliseconds.

    The latencies of answers 200 (`ok_ms`), of 429 and 503 (`refused_ms`) and of others (`other_ms`) are apart. Errors
    are `reset` (the connection ended before the answer), `timeout`, `connect` and `parse`.
    """
    loop = asyncio.get_running_loop()
    state = _Run(job, loop)
    if threading.current_thread() is threading.main_thread():
        loop.add_signal_handler(signal.SIGTERM, state.stop)
    if state.closed_loop:
        for _ in range(job.connections):
            state.open()
    else:
        threading.Thread(target=state.arrivals, daemon=True).start()
    recovery = None
    if job.recovered_ms is not None:
        await asyncio.sleep(max(0.0, state.record.end - time.perf_counter()))
        recovery = await _recovery(job, state.record.end)
    deadline = state.record.end + 2 * job.timeout
    while not state.done.is_set() and time.perf_counter() < deadline:
        state.sweep()
        try:
            async with asyncio.timeout(_SWEEP_SECONDS):
                await state.done.wait()
        except TimeoutError:
            continue
    for connection in list(state.all):
        connection.abort()
    await asyncio.sleep(0)  # transports close in the loop's next turn
    return _result(state, recovery)


def _result(state: _Run, recovery: float | None) -> dict[str, Any]:
    job, record = state.job, state.record
    seconds = min(time.perf_counter(), record.end) - record.begin
    found: dict[str, Any] = {
        "seconds": round(seconds, 4),
        "offered_rate": job.rate,
        "rate": round(record.finished / seconds, 3) if seconds > 0 else 0.0,
        "status": {str(status): count for status, count in sorted(record.status.items())},
        "errors": dict(record.errors),
        "ok_ms": summary(record.ok_ms),
        "refused_ms": summary(record.refused_ms),
        "other_ms": summary(record.other_ms),
        "late_ms": summary(record.late_ms),
        "retry_after": record.retry_after,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "connections": record.opened,
    }
    if job.tally is not None:
        found["tally"] = dict(record.tally)
    if job.recovered_ms is not None:
        found["recovery_seconds"] = recovery
    if job.samples:
        found["samples_ms"] = [round(value, 4) for value in record.ok_ms]
    return found


def _main() -> None:
    import uvloop

    given = json.loads(sys.stdin.read())
    job = Job(**given | {"requests": tuple(given["requests"])})
    print(json.dumps(uvloop.run(run(job))))


if __name__ == "__main__":
    _main()
