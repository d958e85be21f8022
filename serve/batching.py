"""Several requests' images in one inference, where that is faster than one after the other.

It is on a GPU, and may be on many cores; on two cores it is not: one image keeps both busy. `auto` measures it once per
version of a model, before its first answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from serve.settings import Settings
from zoo.base.machine import cores

__all__ = ["Batcher", "pays"]

Logits = npt.NDArray[np.float32]
Run = Callable[[Logits], Logits]

_MANY_CORES = 8
"""With fewer, single images in parallel use every core, and measuring would only delay the start."""

_LEAST_GAIN = 1.1


class Batcher:
    """Collects single inputs of one model into batches; one batch is computed at a time.

    A batch starts as soon as the one before is done and `batch_size` inputs wait, or the oldest has waited for
    `batch_window_ms`. What may wait at all is decided by :meth:`Engine.admit`.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        *,
        thread: Executor | None = None,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        """Make one for a model.

        Args:
            run: float32 [B, C, H, W] to logits float32 [B, K]; called in a thread.
            settings: `batch_size` and `batch_window_ms`.
            thread: where `run` is called; default: one of the event loop's.
            observe: gets every batch's size and seconds.
        """
        self._run = run
        self._size = settings.batch_size
        self._window = settings.batch_window_ms / 1e3
        self._thread = thread
        self._observe = observe
        self._waiting: list[tuple[Logits, asyncio.Future[Logits], float]] = []
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def logits(self, row: Logits) -> Logits:
        """Logits float32 [K] of one preprocessed image float32 [C, H, W]."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Logits] = loop.create_future()
        self._waiting.append((row, future, loop.time()))
        if len(self._waiting) >= self._size:
            self._full.set()
        if self._task is None:
            self._task = loop.create_task(self._work())
        return await future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            rest = self._waiting[0][2] + self._window - loop.time()
            if rest > 0 and len(self._waiting) < self._size:
                self._full.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), rest)
            taken, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
            wanted = [(row, future) for row, future, _ in taken if not future.cancelled()]
            if wanted:
                await self._compute(wanted)
        self._task = None

    async def _compute(self, wanted: list[tuple[Logits, asyncio.Future[Logits]]]) -> None:
        start = time.perf_counter()
        try:
            inputs = np.stack([row for row, _ in wanted])
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, inputs)
            if self._observe is not None:
                self._observe(len(wanted), time.perf_counter() - start)
            for (_, future), logits in zip(wanted, found, strict=True):
                if not future.done():
                    future.set_result(logits)
        except Exception as error:  # whatever it is, those who wait must hear of it
            for _, future in wanted:
                if not future.done():
                    future.set_exception(error)


def pays(single: Run, batched: Run, shape: tuple[int, int, int], settings: Settings, *, gpu: bool) -> bool:
    """Whether batches are worth it, as `settings.batch` says or, if that is `auto`, as measured now.

    Args:
        single: runs one image with one thread (or on the GPU).
        batched: runs a batch with all threads.
        shape: channels, height, width of one input.
        settings: `batch`, `batch_size` and `slots`, the number of single images that are computed at the same time.
        gpu: whether they run on a GPU.
    """
    if settings.batch != "auto":
        return settings.batch == "on"
    if not gpu and cores() < _MANY_CORES:
        return False
    one = _seconds(single, np.zeros((1, *shape), dtype=np.float32))
    many = _seconds(batched, np.zeros((settings.batch_size, *shape), dtype=np.float32))
    # Images on a GPU run one after the other, whatever the number of threads that ask for them.
    parallel = 1 if gpu else min(settings.slots, cores())
    return settings.batch_size / many > _LEAST_GAIN * parallel / one


def _seconds(run: Run, inputs: Logits) -> float:
    run(inputs)
    times: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        run(inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
