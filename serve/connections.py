"""Connections that ask nothing, or without end, or do not read: closed, as uvicorn does only between two requests."""

from __future__ import annotations

import asyncio
import contextlib
import math

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Deadlines", "limit_connections"]

_SPARE = 100
"""Descriptors that connections leave to files, pipes and threads."""


class Deadlines(HttpToolsProtocol):
    """uvicorn's HTTP protocol, whose clients have `seconds` and `most` bytes for a request's headers.

    The same time is left for the rest of a body whose request was answered before it had come. Answers are to be read,
    `least` bytes within `write_seconds`, also where the connection is to be closed. With more than `connections_most`,
    one that asks nothing makes room for each new one.
    """

    seconds = 30.0
    write_seconds = 10.0
    most = 64 << 10
    least = 48 << 10
    connections_most = 1 << 20
    _timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _unfinished = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        # A client that asks again just when its connection is closed cannot know whether it was heard: rarely, then.
        self.timeout_keep_alive = max(self.timeout_keep_alive, math.ceil(self.seconds))
        self._watch()
        if len(self.connections) > self.connections_most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Stop the clock if the headers are complete; start it if they are not."""
        before = self.cycle
        super().data_received(data)
        self._watch()
        if self.cycle is not before or (self.cycle is not None and not self.cycle.response_complete):
            self._unfinished = 0
            return
        # Headers that go on, as nothing has become a request by them; or a body that nobody waits for any more.
        self._unfinished += len(data)
        if self._unfinished > self.most and (self.cycle is None or not self.cycle.more_body):
            self.transport.abort()

    def pause_writing(self) -> None:
        """Start the clock of a client that does not read."""
        super().pause_writing()
        self._must_read()

    def resume_writing(self) -> None:
        """Stop that clock."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def shutdown(self) -> None:
        """End with the server: in time, whatever the client reads."""
        super().shutdown()
        self._end()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that asks no more."""
        super().timeout_keep_alive_handler()
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clocks."""
        self._stop()
        super().connection_lost(exc)
        if self._write_timer is not None:  # which resuming has stopped, unless it was closed since
            self._write_timer.cancel()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self._close)

    def _close(self) -> None:
        self.transport.close()
        self._end()

    def _end(self) -> None:
        """Let a closed connection not wait for its client to read the rest."""
        if self.transport.is_closing():
            self._must_read()

    def _must_read(self) -> None:
        if self._write_timer is None:
            waiting = self.transport.get_write_buffer_size()
            self._write_timer = self.loop.call_later(self.write_seconds, self._has_read, waiting)

    def _has_read(self, before: int) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() > before - self.least:
            self.transport.abort()
        else:
            self._must_read()

    def _make_room(self) -> None:
        """Close one connection that asks nothing: one that never did, if there is one."""
        others = [one for one in self.connections if isinstance(one, Deadlines) and one is not self]
        idle = [one for one in others if one.cycle is None or one.cycle.response_complete]
        if idle:
            min(idle, key=lambda one: one.cycle is not None).transport.abort()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limit_connections(seconds: float) -> None:
    """Let the uvicorn of this process use :class:`Deadlines`, and as many descriptors as the system allows; before its
    configuration is made.

    BentoML makes that configuration and passes nothing of ours on, so that the choice `auto` is what can be set.
    """
    Deadlines.seconds = seconds
    Deadlines.connections_most = max(_SPARE, _descriptors() - _SPARE)
    auto.AutoHTTPProtocol = Deadlines


def _descriptors() -> int:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        return hard if hard != resource.RLIM_INFINITY else 1 << 20
    return 1 << 20
