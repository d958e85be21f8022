"""Bodies of requests in memory: within a limit, with room kept for small ones, and not for those who stall.

A body has to go on: every 20 kB give it five seconds more. Where memory is short, the one that has made no such
progress for longest, a fifth of a second at least, is cut off first, so that stalled uploads keep nobody out. A body
that finds no memory waits a second for it: so long it may take until those that stall can be told from others.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.types import Message

from serve.protocols.http import Call, Refused
from serve.settings import Settings

__all__ = ["AtMost", "Bodies", "check_images", "parsed", "too_large"]

T = TypeVar("T")

_LARGE_BYTES = 4 << 20
"""A larger body is worth giving its memory back to the system."""

_SMALL_BYTES = 1 << 20
"""Larger bodies leave a part of the memory to smaller ones."""

_INLINE_BYTES = 1 << 20
"""Larger bodies are parsed in a thread of their own, one at a time: decompressed and parsed they take memory."""
_PARSER = ThreadPoolExecutor(1, thread_name_prefix="parser")

_WINDOW_SECONDS = 5.0
_WINDOW_BYTES = 20_000
"""4 kB/s: a photograph of 200 kB would take longer than a request may."""

_STALLED_SECONDS = 0.2
_PATIENCE_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class AtMost:
    """Refuses JSON that has more of some characters than a sensible document needs, while it comes, or at once."""

    characters: bytes
    most: int
    refusal: Callable[[int], str]
    """A sentence, from how many there were."""
    seen: int = 0

    def __call__(self, part: bytes) -> None:
        """Look at the next part of the document.

        Raises:
            Refused: 413.
        """
        self.seen += sum(part.count(character) for character in self.characters)
        if self.seen > self.most:
            raise Refused(413, self.refusal(self.seen))


@dataclass(slots=True, eq=False)
class _Upload:
    """A body that is still coming."""

    call: Call
    limit: asyncio.Timeout
    since: float
    """When it last made progress, on the event loop's clock."""
    more: int = 0
    """Bytes since then."""

    def came(self, count: int, now: float) -> None:
        """Note bytes, and give it more time for enough of them."""
        self.more += count
        if self.more >= _WINDOW_BYTES:
            self.since, self.more = now, 0
            self.limit.reschedule(now + _WINDOW_SECONDS)


class Bodies:
    """The bodies of one worker; its methods are called from the event loop."""

    def __init__(self, settings: Settings, *, tidy: Callable[[], None] = lambda: None) -> None:
        """`settings.max_buffered_bytes` are there for all; `tidy` is called when a large one was freed."""
        self._most = settings.max_buffered_bytes
        self._most_of_large = max(settings.max_request_bytes, self._most * 3 // 4)
        self._tidy = tidy
        self._uploads: set[_Upload] = set()
        self._waiting: set[int] = set()
        """Identities of calls: who waits for memory does not stall."""
        # Who waits behind large bodies would wait for what only they need.
        self._turns = {most: asyncio.Lock() for most in (self._most, self._most_of_large)}
        self.held = 0
        """Bytes in memory."""

    async def read(self, call: Call, limit: int, json: Callable[[], AtMost] | None = None) -> bytes:
        """The whole body of a request; what `json` makes looks at it as it comes, if it begins like an object of JSON.

        Raises:
            Refused: 413 if it is larger than `limit` bytes or `json` refuses it, 503 if too many bodies are in memory,
                408 if it stalls, 499 if the client went away.
        """
        started = time.perf_counter()
        call.reading = True
        message = await call.receive()
        body = _body(message)
        await self._account(call, len(body), limit)
        look = json() if json is not None and body.lstrip()[:1] == b"{" else None
        if look is not None:
            look(body)
        if message.get("more_body"):
            body = await self._read_rest(call, body, limit, look)
        call.reading = False
        call.stages["read"] = (time.perf_counter() - started) * 1e3
        return body

    async def _read_rest(self, call: Call, first: bytes, limit: int, look: AtMost | None) -> bytes:
        loop = asyncio.get_running_loop()
        chunks, total, more = [first], len(first), True
        try:
            async with asyncio.timeout(_WINDOW_SECONDS) as timeout:
                upload = _Upload(call, timeout, loop.time())
                self._uploads.add(upload)
                try:
                    while more:
                        message = await call.receive()
                        chunk = _body(message)
                        if look is not None:
                            look(chunk)
                        more = message.get("more_body", False)
                        total += len(chunk)
                        await self._account(call, total, limit)
                        upload.came(len(chunk), loop.time())
                        chunks.append(chunk)
                finally:
                    self._uploads.discard(upload)
        except TimeoutError:
            raise Refused(
                408,
                f"the body stalled after {total} bytes: expected {_WINDOW_BYTES} more every {_WINDOW_SECONDS:g} s, or "
                f"every {_STALLED_SECONDS:g} s while other bodies need the memory; send it again",
            ) from None
        return b"".join(chunks)

    async def _account(self, call: Call, total: int, limit: int) -> None:
        if total > limit:
            raise too_large(total, limit)
        if total > call.buffered:
            await self.hold(call, total - call.buffered)

    async def hold(self, call: Call, count: int) -> None:
        """Count `count` more bytes that are in memory for the request, until it is done.

        Raises:
            Refused: 503 if the requests in memory would have too many.
        """
        small = max(call.buffered + count, call.content_length or 0) <= _SMALL_BYTES
        most = self._most if small else self._most_of_large
        if self.held + count > most:
            await self._wait_for(call, count, most)
        self.held += count
        call.buffered += count

    async def _wait_for(self, call: Call, count: int, most: int) -> None:
        """Return when there is memory for `count` more bytes; the first in each of two queues looks for it."""
        self._waiting.add(id(call))
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS), self._turns[most]:
                while self.held + count > most:
                    if not self._cut_slowest():
                        await asyncio.sleep(_STALLED_SECONDS / 8)
        except TimeoutError:
            raise Refused(
                503,
                f"the requests in memory have {self.held} bytes, with this one more than {most} "
                "(POCKETZOO_MAX_BUFFERED_BYTES); try again later",
                retry_after=1.0,
            ) from None
        finally:
            self._waiting.discard(id(call))

    def _cut_slowest(self) -> bool:
        """End the upload that stalls for longest, in favour of those that wait; False if none does."""
        now = asyncio.get_running_loop().time()
        stalled = [
            upload
            for upload in self._uploads
            if id(upload.call) not in self._waiting and upload.call.buffered and now - upload.since > _STALLED_SECONDS
        ]
        if not stalled:
            return False
        slowest = min(stalled, key=lambda upload: upload.since)
        self._uploads.discard(slowest)
        slowest.limit.reschedule(now)
        self.release(slowest.call)
        return True

    def release(self, call: Call) -> None:
        """Forget the request's body."""
        self.held -= call.buffered
        large, call.buffered = call.buffered > _LARGE_BYTES, 0
        if large:
            self._tidy()


async def parsed(body: bytes, parse: Callable[..., T], *arguments: Any, inline: int = _INLINE_BYTES) -> T:
    """`parse(body, *arguments)`: here for a body of at most `inline` bytes, else where it keeps others from nothing."""
    if len(body) <= inline:
        return parse(body, *arguments)
    return await asyncio.get_running_loop().run_in_executor(_PARSER, functools.partial(parse, body, *arguments))


def check_images(sizes: Sequence[int], settings: Settings, place: Callable[[int], str]) -> None:
    """Refuse too many images, or too large a one; `place` says where the one with an index is.

    Raises:
        Refused: 413.
    """
    if len(sizes) > settings.max_images:
        raise Refused(
            413, f"{len(sizes)} images, at most {settings.max_images} at once (POCKETZOO_MAX_IMAGES); send fewer"
        )
    for index, size in enumerate(sizes):
        if size > settings.max_image_bytes:
            raise Refused(
                413,
                f"{place(index)} has {size} bytes, at most {settings.max_image_bytes} are accepted "
                "(POCKETZOO_MAX_IMAGE_BYTES)",
            )


def too_large(got: int, limit: int) -> Refused:
    """The error for a body of `got` bytes or more."""
    return Refused(
        413, f"the body has {got} bytes or more, at most {limit} are accepted; send a smaller image, or fewer"
    )


def _body(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise Refused(499, "the client closed the connection before its request was complete")
    body: bytes = message.get("body", b"")
    return body
