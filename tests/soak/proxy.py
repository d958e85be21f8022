"""A proxy of TCP connections, as a Service of Kubernetes is one: each goes to the next port of those that are ready."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["Proxy", "proxying"]


@dataclass(kw_only=True)
class Proxy:
    """A running proxy. Nothing is sent again: what a server does not answer is lost."""

    ready: tuple[int, ...]
    """Ports of servers; may be replaced at any time, for connections to come."""
    port: int = 0
    """Its own."""
    _turns: Iterator[int] = field(default_factory=itertools.count)
    _joined: set[asyncio.Task[None] | None] = field(default_factory=set)
    """Of connections: asyncio itself refers to a stream that is being read only weakly."""

    async def join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Give a connection its server."""
        task = asyncio.current_task()
        self._joined.add(task)
        try:
            await self._join(reader, writer)
        finally:
            self._joined.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = self.ready
        try:
            there = await asyncio.open_connection("127.0.0.1", ready[next(self._turns) % len(ready)])
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
        for end in (writer, there[1]):
            end.close()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(1 << 16):
            target.write(data)
            await target.drain()
    with contextlib.suppress(OSError):
        target.write_eof()


@contextlib.contextmanager
def proxying(*ready: int) -> Iterator[Proxy]:
    """A proxy in front of servers on these ports while the block runs."""
    proxy, started = Proxy(ready=ready), threading.Event()
    loop, over = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        async with await asyncio.start_server(proxy.join, "127.0.0.1", 0, backlog=1024) as server:
            proxy.port = server.sockets[0].getsockname()[1]
            started.set()
            await over.wait()

    def run() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    started.wait()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
