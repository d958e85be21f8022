"""An HTTP/1.1 load generator in a process of its own, cheap enough to share the cores with the server it measures.

Run as `python -m bench.load.client`: it reads one :class:`bench.load.load_spec.Job` as JSON from standard input and
prints a result as JSON. SIGTERM ends a run early, with its result.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import ssl
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from bench.load.connection import Connection
from bench.load.histogram import Latencies
from bench.load.load_spec import Job, Record, arrivals, lasting, summary
from bench.load.recovery import recovery

__all__ = ["run"]

_REFUSALS = (429, 503)
_SWEEP_SECONDS = 0.1
_AGAIN_SECONDS = 0.02
_PARENT_SECONDS = 0.5


class _Run:
    """A run: its connections, what waits for one, and what was found."""

    def __init__(self, job: Job, loop: asyncio.AbstractEventLoop) -> None:
        self.job = job
        self.loop = loop
        self.requests = [base64.b64decode(text) for text in job.requests]
        self.turn = 0
        self.tls = ssl.create_default_context() if job.tls else None
        kept = [Latencies() if job.histogram else array("d") for _ in range(5)]
        seconds, begin = lasting(job), time.perf_counter() + job.warmup
        self.record = Record(
            begin=begin,
            end=begin + seconds,
            last=begin,
            ok_ms=kept[0],
            refused_ms=kept[1],
            other_ms=kept[2],
            late_ms=kept[3],
            query_ms=kept[4],
        )
        self.all: set[Connection] = set()
        self.idle: list[Connection] = []
        self.waiting: deque[float] = deque()
        """Scheduled arrivals that no connection has taken yet."""
        self.opening = 0
        self.arrivals_over = job.rate is None
        self.asked = 0.0
        """When the burst on its way was sent; `left` of its requests are not over; `spoilt`: one was not answered."""
        self.left = 0
        self.spoilt = False
        self.unanswered = 0
        """Requests in a row without any answer."""
        self.gave_up = False
        self.stopped = asyncio.Event()
        self.done = asyncio.Event()

    def next_request(self) -> bytes:
        request = self.requests[self.turn]
        self.turn = (self.turn + 1) % len(self.requests)
        return request

    @property
    def closed_loop(self) -> bool:
        return self.job.closed_loop

    @property
    def sending(self) -> bool:
        if self.stopped.is_set() or self.job.total is not None:
            return False
        return time.perf_counter() < self.record.end or self.asking_more

    @property
    def timed(self) -> bool:
        """Whether it ends with the time; other runs end with their last answer."""
        return self.job.burst is None and self.job.total is None

    @property
    def unbounded(self) -> bool:
        """Whether it goes on until enough is answered; then each request has its time, and they all have none."""
        return not self.stopped.is_set() and (self.asking_more or self.job.total is not None)

    @property
    def asking_more(self) -> bool:
        """Whether there were fewer bursts than there have to be."""
        return self.job.burst is not None and self.record.queries < self.job.queries

    def ask(self) -> None:
        """Send a burst."""
        if self.sending:
            assert self.job.burst is not None
            self.left, self.spoilt, self.asked = self.job.burst, False, time.perf_counter()
            self.arrive([self.asked] * self.left)
        else:
            self._check_done()

    def over(self, *, answered: bool, good: bool) -> None:
        """Count a request that ended: a run without answers is given up, and a burst without requests is followed."""
        self.unanswered = 0 if answered else self.unanswered + 1
        if self.job.patience and self.unanswered >= self.job.patience:
            self.gave_up = True
            self.stop()
        if self.job.burst is None:
            return
        self.left -= 1
        self.spoilt |= not good
        if self.left:
            return
        if self.asked >= self.record.begin:
            self.record.queries += 1
            if not self.spoilt:
                self.record.query_ms.append((time.perf_counter() - self.asked) * 1e3)
        # In the loop's next turn the connection is free; after a failure at once would be a storm.
        self.loop.call_later(_AGAIN_SECONDS if self.spoilt else 0, self.ask)

    def free(self, connection: Connection) -> None:
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

    def _take(self, connection: Connection, scheduled: float) -> None:
        # Of many requests that are due at once each latency would say when its turn came.
        connection.send(time.perf_counter() if self.job.total is not None else scheduled)
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
            if self.opening < len(self.waiting) and len(self.all) < self.job.connections:
                self.open()

    def open(self) -> None:
        self.opening += 1
        connection = Connection(self)
        self.all.add(connection)
        self.loop.create_task(self._open(connection))

    async def _open(self, connection: Connection) -> None:
        try:
            await self.loop.create_connection(lambda: connection, self.job.host, self.job.port, ssl=self.tls)
        except OSError:
            self.all.discard(connection)
            self.record.errors["connect"] += 1
            # A closed loop tries again; of all others, the request that asked for the connection is lost.
            if not self.closed_loop and self.waiting:
                self.waiting.popleft()
                self.over(answered=False, good=False)
            if (self.closed_loop and self.sending) or (self.waiting and not self.all):
                self.loop.call_later(_AGAIN_SECONDS, self.open)
        finally:
            self.opening -= 1
            self._check_done()

    def answered(self, connection: Connection, status: int, keep: bool) -> None:
        record, now = self.record, time.perf_counter()
        connection.busy = False
        if status == 200:
            record.finished += record.begin <= now <= record.end
        if connection.counts:
            record.status[status] += 1
            record.last = now
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
        self.over(answered=True, good=status == 200)
        if keep and connection.transport is not None:
            self.free(connection)
        else:
            self.all.discard(connection)
            connection.abort()
            self._replace()

    def fail(self, connection: Connection, kind: str) -> None:
        if connection.busy:
            connection.busy = False
            self.record.errors[kind] += 1
            self.over(answered=False, good=False)

    def lost(self, connection: Connection) -> None:
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

    def give_up(self) -> None:
        """Count what is neither answered nor failed at the end, and close all connections."""
        for connection in list(self.all):
            if connection.busy:
                connection.busy = False
                self.record.errors["timeout"] += 1
            connection.abort()
        if self.waiting:
            self.record.errors["unsent"] += len(self.waiting)
            self.waiting.clear()

    def _check_done(self) -> None:
        over = not self.sending and (self.arrivals_over or self.stopped.is_set())
        quiet = not self.opening and not any(connection.busy for connection in self.all)
        if over and quiet and (not self.waiting or self.stopped.is_set()):
            self.done.set()

    def arrivals(self) -> None:
        """In a thread of its own, as the loop's timers are a millisecond coarse: wake the loop for every arrival."""
        assert self.job.rate is not None
        start, offsets = self.record.begin - self.job.warmup, arrivals(self.job.rate, self.job.seed)
        moment = start + next(offsets)
        while not self.stopped.is_set() and moment < self.record.end:
            time.sleep(max(0.0, moment - time.perf_counter()))
            now, due = time.perf_counter(), []
            while moment <= now and moment < self.record.end:
                due.append(moment)
                moment = start + next(offsets)
            if due:
                self._in_loop(self.arrive, due)
        self._in_loop(self._no_more_arrivals)

    def _in_loop(self, call: Callable[..., None], *given: Any) -> None:
        # A run that was stopped may have closed its loop meanwhile.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(call, *given)

    def _no_more_arrivals(self) -> None:
        self.arrivals_over = True
        self._check_done()


async def run(job: Job) -> dict[str, Any]:
    """Do a job: counts per status and kind of error, successes per second, latencies in milliseconds.

    The latencies of answers 200 (`ok_ms`), of 429 and 503 (`refused_ms`) and of others (`other_ms`) are apart. Errors
    are `reset` (the connection ended before the answer), `timeout`, `connect`, `parse` and `unsent` (due, but no
    connection was free until the end).
    """
    loop = asyncio.get_running_loop()
    state = _Run(job, loop)
    if threading.current_thread() is threading.main_thread():
        loop.add_signal_handler(signal.SIGTERM, state.stop)
    if state.closed_loop:
        for _ in range(job.connections):
            state.open()
    elif job.rate is not None:
        threading.Thread(target=state.arrivals, daemon=True).start()
    elif job.total is not None:
        state.arrive([state.record.begin] * job.total)
    else:
        state.ask()
    recovered = None
    if job.recovered_ms is not None:
        await asyncio.sleep(max(0.0, state.record.end - time.perf_counter()))
        recovered = await recovery(job, state.record.end)
    deadline = state.record.end + 2 * job.timeout
    while not state.done.is_set() and (time.perf_counter() < deadline or state.unbounded):
        state.sweep()
        try:
            async with asyncio.timeout(_SWEEP_SECONDS):
                await state.done.wait()
        except TimeoutError:
            continue
    state.give_up()
    await asyncio.sleep(0)  # transports close in the loop's next turn
    return _result(state, recovered)


def _result(state: _Run, recovered: float | None) -> dict[str, Any]:
    job, record = state.job, state.record
    seconds = (min(time.perf_counter(), record.end) if state.timed else record.last) - record.begin
    finished = record.finished if state.timed else record.status[200]
    found: dict[str, Any] = {
        "seconds": round(seconds, 4),
        "offered_rate": job.rate,
        "rate": round(finished / seconds, 3) if seconds > 0 else 0.0,
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
        "gave_up": state.gave_up,
    }
    if job.tally is not None:
        found["tally"] = dict(record.tally)
    if job.recovered_ms is not None:
        found["recovery_seconds"] = recovered
    if job.histogram:
        counted = record.ok_ms if job.burst is None else record.query_ms
        assert isinstance(counted, Latencies)
        found |= {"histogram": counted.encode(), "queries": record.queries}
    if job.samples:
        kept = record.ok_ms
        assert not isinstance(kept, Latencies)
        found["samples_ms"] = [round(value, 4) for value in kept]
    return found


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, which may have had no time to end it: nobody waits for a result."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    os._exit(1)


def _main() -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import uvloop

    given = json.loads(sys.stdin.read())
    job = Job(**given | {"requests": tuple(given["requests"])})
    print(json.dumps(uvloop.run(run(job))))


if __name__ == "__main__":
    _main()
