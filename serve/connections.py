"""Connections that ask nothing, or without end: closed, which uvicorn by itself does only between two requests."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["HeaderDeadline", "limit_headers"]


class HeaderDeadline(HttpToolsProtocol):
    """uvicorn's HTTP protocol, whose clients have `seconds` and `most` bytes for a request's headers.

    The same time is left for the rest of a body whose request was answered before it had come.
    """

    seconds = 30.0
    most = 64 << 10
    _timer: asyncio.TimerHandle | None = None
    _unfinished = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._watch()

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

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.seconds, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limit_headers(seconds: float) -> None:
    """Let the uvicorn of this process use :class:`HeaderDeadline`; before its configuration is made.

    BentoML makes that configuration and passes nothing of ours on, so that the choice `auto` is what can be set.
    """
    HeaderDeadline.seconds = seconds
    auto.AutoHTTPProtocol = HeaderDeadline
