"""A server for load tests that answers as it is told, without any model."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field

_HANDSHAKE = b"\x16"
"""What TLS begins with."""
ANSWER = {"model": "tiny", "version": "0123456789ab", "digest": "0123456789ab" + "0" * 52}


@dataclass
class Script:
    """How to answer: one request at a time, each after `seconds`, and with one stall before request `stall_at`."""

    seconds: float = 0.0
    status: int = 200
    busy_every: int | None = None
    """Answer 503 to each request whose number it divides."""
    answer: dict = field(default_factory=lambda: dict(ANSWER))
    stall_at: int | None = None
    stall_seconds: float = 0.0
    end_at: int | None = None
    """Close the listener and every connection before this request."""
    heads: list = field(default_factory=list)
    port: int = 0


@contextlib.contextmanager
def scripted(script):
    """Serve in a thread; `script.port` is set."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    def serve():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(_serve(script, ready, stop))
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield script
    finally:
        if not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)
        thread.join(5)
        assert not thread.is_alive()


async def _serve(script, ready, stop):
    turn = asyncio.Lock()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        script.port = listener.getsockname()[1]
        handlers, writers = [], []

        async def accept():
            while True:
                accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
                reader, writer = await asyncio.open_connection(sock=accepted)
                writers.append(writer)
                handlers.append(asyncio.create_task(_handle(script, reader, writer, turn, stop)))

        accepting = asyncio.create_task(accept())
        ready.set()
        await stop.wait()
        for task in (accepting, *handlers):
            task.cancel()
        await asyncio.gather(accepting, *handlers, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)


async def _handle(script, reader, writer, turn, stop):
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            first = await reader.readexactly(1)
            if first == _HANDSHAKE:
                writer.write(b"HTTP/1.1 400 X\r\n\r\n")
                return
            head = first + await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            async with turn:
                script.heads.append(head.decode())
                if script.end_at is not None and len(script.heads) >= script.end_at:
                    stop.set()
                    return
                if len(script.heads) == script.stall_at:
                    # The whole server stands still, as in a pause of its garbage collector.
                    time.sleep(script.stall_seconds)
                if script.seconds:
                    await asyncio.sleep(script.seconds)
                body = json.dumps(script.answer).encode()
                busy = script.busy_every is not None and len(script.heads) % script.busy_every == 0
                status = 503 if busy else script.status
                writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
                await writer.drain()
