"""One connection of the load generator."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

import httptools

from bench.load.load_spec import Job, Record

__all__ = ["Connection", "Run"]


class Run(Protocol):
    """What a connection needs of the run that it belongs to."""

    job: Job
    record: Record

    def next_request(self) -> bytes:
        """What to send."""
        ...

    def free(self, connection: Connection) -> None:
        """It is open, and has nothing to do."""
        ...

    def answered(self, connection: Connection, status: int, keep: bool) -> None:
        """An answer is complete; `keep`: the connection stays open."""
        ...

    def fail(self, connection: Connection, kind: str) -> None:
        """The answer on its way will not come."""
        ...

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        ...


class Connection(asyncio.Protocol):
    """One keep-alive connection: at most one request on its way."""

    __slots__ = ("busy", "parser", "run", "scheduled", "seen", "transport", "written")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: asyncio.Transport | None = None
        self.parser = httptools.HttpResponseParser(self)
        self.busy = False
        self.scheduled = self.written = 0.0
        self.seen: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; there is nothing on its way yet."""
        # uvloop's transports are asyncio's by behaviour, not by class.
        self.transport = cast(asyncio.Transport, transport)
        self.run.record.opened += 1
        self.run.free(self)

    @property
    def counts(self) -> bool:
        """Whether its request was sent after the warm-up."""
        return self.written >= self.run.record.begin

    def send(self, scheduled: float) -> None:
        """Write the next request; its latency counts from `scheduled`, seconds of `time.perf_counter`."""
        assert self.transport is not None
        run = self.run
        self.busy = True
        self.scheduled = scheduled
        request = run.next_request()
        self.written = time.perf_counter()
        self.transport.write(request)
        run.record.bytes_out += len(request)

    def data_received(self, data: bytes) -> None:
        """Parse a part of an answer."""
        self.run.record.bytes_in += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.run.fail(self, "parse")
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count what the parser found."""
        if self.counts and name.lower() == b"retry-after":
            self.run.record.retry_after += 1

    def on_body(self, body: bytes) -> None:
        """Keep what the parser found, if the run looks into answers."""
        if self.run.job.tally is not None:
            self.seen.append(body)

    def on_message_complete(self) -> None:
        """Hand an answer to the run."""
        keep = self.parser.should_keep_alive()
        self.run.answered(self, self.parser.get_status_code(), keep)

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the run."""
        self.transport = None
        self.run.lost(self)

    def abort(self) -> None:
        """Close it now."""
        if self.transport is not None:
            self.transport.abort()
