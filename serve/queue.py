"""Who computes when: the slots of a worker, the queue in front of them, and what is refused because it is full.

A request is admitted if nothing is inside; else if its time would not be up before it began, and if at most `queue`
images wait, or if those that wait will be done within `queue_seconds`. So a burst on a slow model is not shed, and a
fast model's queue drains as quickly as a slow one's. How long an image takes is one moving average over all models.

Large images (see :class:`serve.prediction.Memory`) leave their slot for threads of their own as soon as their header
says what they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from serve.prediction import Large, Memory
from serve.protocols.http import Call, Refused
from serve.settings import Settings

__all__ = ["Engine", "Work"]

T = TypeVar("T")

_SMOOTHING = 0.1
"""Weight of the newest duration in the moving average."""

_HEAVY_SECONDS = 0.1
"""What takes longer has probably taken much memory, too."""

_TIDY_SECONDS = 1.0

_LARGE_NICENESS = 10
"""A tenth of the time of others that want it."""

_FIRST_GUESS = 0.02
"""Seconds per image before anything was measured."""


@dataclass(slots=True)
class Work(Generic[T]):
    """Something to compute in a thread, once."""

    run: Callable[[bool], T]
    """It is told whether it has the machine for itself."""
    images: int = 1
    """How many images' worth of time it takes."""
    queued: float = 0.0
    """Seconds that it has waited."""
    seconds: float = 0.0
    """Seconds that it has taken, whatever came of it."""


class _Lane:
    """Threads, and what is inside of them."""

    def __init__(self, threads: int, name: str, start: Callable[[], None] | None = None) -> None:
        self.threads = ThreadPoolExecutor(threads, name, start)
        self.count = threads
        self.inside = 0
        """Images that wait or are being computed."""
        self.seconds = _FIRST_GUESS
        """What one takes: a moving average."""

    def wait_seconds(self, images: int = 1) -> float:
        """How long the last of `images` that come now would wait."""
        return max(0.0, (self.inside + images - self.count) * self.seconds / self.count)


def _after_others() -> None:
    """Let the system give this thread less time than those of small images, where it knows threads (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LARGE_NICENESS)


class Engine:
    """The threads of one worker. Its methods are called from the event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        observe: Callable[[int], None] | None = None,
        tidy: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the threads.

        Args:
            settings: `slots`, `queue`, `queue_seconds` and `timeout_seconds`.
            observe: gets the number of images that wait, whenever it may have changed.
            tidy: called in a thread when nothing is computed any more after something that took long.
        """
        self._settings = settings
        self._tidy = tidy
        self._observe = observe
        self.memory = Memory(settings)
        self._slots = _Lane(settings.slots, "slot")
        self._large = _Lane(settings.slots, "large", _after_others)
        self._batch_seconds = 0.0
        self._untidy = False
        self._resting: asyncio.TimerHandle | None = None

    @property
    def inside(self) -> int:
        """Images that wait or are being computed, large ones too."""
        return self._slots.inside + self._large.inside

    @property
    def waiting(self) -> int:
        """Images that wait for a slot, or are in a batch or wait for one."""
        return max(0, self._slots.inside - self._settings.slots)

    def wait_seconds(self, images: int = 1) -> float:
        """How long the last of `images` that come now would wait for a slot."""
        ahead = self._slots.inside + images - self._settings.slots
        return max(self._slots.wait_seconds(images), ahead * self._batch_seconds)

    @contextlib.contextmanager
    def inside_a_batch(self, images: int) -> Iterator[None]:
        """Count images that wait for, or are in, a batch among those inside."""
        self._enter(self._slots, images)
        try:
            yield
        finally:
            self._enter(self._slots, -images)

    def batch_took(self, images: int, seconds: float) -> None:
        """Learn how long a batch of `images` took, for the estimate of the wait."""
        self._batch_seconds += _SMOOTHING * (seconds / images - self._batch_seconds)

    def admit(self, images: int = 1) -> None:
        """Refuse what could not be served in time.

        Raises:
            Refused: 503, with the seconds after which it may be worth trying again.
        """
        if not self._slots.inside:
            return
        wait = self.wait_seconds(images)
        many = self._slots.inside + images - self._settings.slots > max(self._settings.queue, images)
        if wait > self._settings.timeout_seconds or (many and wait > self._settings.queue_seconds):
            raise Refused(
                503,
                f"the server is busy: {self.waiting} images wait, which takes about {wait:.1f} s; try again later",
                retry_after=wait,
            )

    async def map(self, call: Call, works: Sequence[Work[T]]) -> list[T]:
        """Run each of `works` in a thread when there is a slot for it; their results in order.

        Raises:
            Refused: 503 if the queue is full, 504 if the time is up before one has begun.
            Exception: what the first of `works` that failed has raised; the others are not begun any more.
        """
        images = sum(work.images for work in works)
        self.admit(images)
        self._enter(self._slots, images)
        submitted, given_up = time.perf_counter(), threading.Event()

        def job(work: Work[T]) -> T:
            began = time.perf_counter()
            self._check(call, began, given_up)
            work.queued = began - submitted
            try:
                found = work.run(self.inside == images == work.images)
            except Large:
                raise
            except BaseException:
                work.seconds = time.perf_counter() - began
                given_up.set()
                raise
            work.seconds = time.perf_counter() - began
            return found

        if len(works) == 1:
            found = [await self._one(job, works[0])]
        else:
            tasks = [asyncio.ensure_future(self._one(job, work)) for work in works]
            try:
                found = await asyncio.gather(*tasks)
            except BaseException:
                given_up.set()
                await asyncio.gather(*tasks, return_exceptions=True)
                raise
            finally:
                del tasks  # see _in
        call.stages["queue"] = max(work.queued for work in works) * 1e3
        return found

    async def _one(self, job: Callable[[Work[T]], T], work: Work[T]) -> T:
        try:
            return await self._in(self._slots, job, work)
        except Large:
            pass  # not in here: what is raised next would keep this error, and with it the image
        wait = self._large.wait_seconds()
        if self._large.inside > self._settings.queue or wait > self._settings.timeout_seconds:
            raise Refused(503, f"{self._large.inside} large images wait; try again later", retry_after=max(1.0, wait))
        self._enter(self._large, work.images)
        return await self._in(self._large, self.memory.large()(job), work)

    async def _in(self, lane: _Lane, job: Callable[[Work[T]], T], work: Work[T]) -> T:
        future, images = lane.threads.submit(job, work), work.images
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not future.done():
                self._leave_when_done(future, lane, images)
                images = 0
            raise
        finally:
            # What failed took its time, too.
            if work.seconds:
                lane.seconds += _SMOOTHING * (work.seconds / max(1, work.images) - lane.seconds)
                self._untidy |= work.seconds > _HEAVY_SECONDS
            self._enter(lane, -images)
            # An error's traceback has this frame, and the future has the error: the request's body would stay in memory
            # until the garbage collector runs.
            del future

    def _leave_when_done(self, future: Future[Any], lane: _Lane, images: int) -> None:
        """Count images as inside for as long as the thread that nobody waits for any more computes them."""
        loop = asyncio.get_running_loop()

        def leave(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody counts any more
                loop.call_soon_threadsafe(self._enter, lane, -images)

        future.add_done_callback(leave)

    def _enter(self, lane: _Lane, images: int) -> None:
        lane.inside += images
        if self._untidy:
            self._tidy_if_idle()
        if self._observe is not None:
            self._observe(self.waiting)

    def took_memory(self) -> None:
        """Something else has taken, and freed, much memory: give it back as soon as nothing is computed."""
        self._untidy = True
        self._tidy_if_idle()

    def _tidy_if_idle(self) -> None:
        if self.inside or not self._untidy or self._resting is not None:
            return
        self._untidy = False
        self._slots.threads.submit(self._tidy)
        # The C library lets nobody have memory meanwhile; who sends large bodies all the time must not profit from it.
        self._resting = asyncio.get_running_loop().call_later(_TIDY_SECONDS, self._rested)

    def _rested(self) -> None:
        self._resting = None
        self._tidy_if_idle()

    def _check(self, call: Call, now: float, given_up: threading.Event) -> None:
        if given_up.is_set() or call.gone():
            raise Refused(499, "the client has closed the connection, or another image of its request was refused")
        if now - call.started > self._settings.timeout_seconds:
            raise Refused(
                504,
                f"not begun within {self._settings.timeout_seconds:g} s (POCKETZOO_TIMEOUT_SECONDS)",
                retry_after=self.wait_seconds(),
            )

    def close(self) -> None:
        """Wait for what runs; drop what waits."""
        if self._resting is not None:
            self._resting.cancel()
        for lane in (self._slots, self._large):
            lane.threads.shutdown(wait=True, cancel_futures=True)
