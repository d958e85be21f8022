"""The embedded executor: worker processes on this machine, fed from a window of chunks that never grows."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Barrier

import pyarrow as pa

from serve.bulk.inputs import Source
from serve.bulk.scorer import Chunk, Job, Scorer
from zoo.base.errors import PocketzooError
from zoo.base.machine import cores, peak_bytes

__all__ = ["Scored", "in_processes"]

_AHEAD = 4
"""Chunks per worker that are being scored or wait for it."""

_START_SECONDS = 600.0

Scored = tuple[pa.RecordBatch, int]
"""Rows of a chunk, and the most bytes of memory that its worker has had."""

_scorer: Scorer | PocketzooError
_barrier: Barrier


@contextmanager
def in_processes(job: Job, source: Source, start: int, workers: int) -> Iterator[tuple[int, Iterator[Scored]]]:
    """Score the chunks from number `start` on in processes of this machine.

    Args:
        job: for every process.
        source: cut into chunks.
        start: chunks before it are done.
        workers: processes; 0: as many as the cores allow.

    Yields:
        The number of processes, all of which have loaded the artefact, and the rows and memory of each chunk, in their
        order.

    Raises:
        PocketzooError: a process cannot load the artefact, or died.
    """
    workers = workers or max(1, cores() // job.threads)
    context = get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_load, initargs=(job, context.Barrier(workers)))
    try:
        with _signals_later():
            ready = [pool.submit(_ready) for _ in range(workers)]
        try:
            for future in ready:
                future.result()
        except BrokenProcessPool as error:
            raise PocketzooError(_broken([])) from error
        yield workers, _results(pool, source.read(start), workers * _AHEAD)
    finally:
        pool.shutdown(cancel_futures=True)


def _results(pool: ProcessPoolExecutor, chunks: Iterator[Chunk], window: int) -> Iterator[Scored]:
    waiting: deque[tuple[Chunk, Future[Scored]]] = deque()
    try:
        while True:
            for chunk in itertools.islice(chunks, window - len(waiting)):
                waiting.append((chunk, pool.submit(_score, chunk)))
            if not waiting:
                return
            scored = waiting[0][1].result()
            waiting.popleft()
            yield scored
    except BrokenProcessPool as error:
        raise PocketzooError(_broken([chunk for chunk, _ in waiting])) from error


def _broken(chunks: list[Chunk]) -> str:
    place = f"at work on {chunks[0].names[0]} to {chunks[-1].names[-1]}" if chunks else "while it started"
    return (
        f"a worker process died {place}: killed, out of memory (fewer --workers or a smaller --batch need less), "
        "or crashed by an image; the same command continues where it stopped"
    )


@contextmanager
def _signals_later() -> Iterator[None]:
    """Let processes start with Ctrl-C blocked: the terminal sends it to all of them, and this one stops the others."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _load(job: Job, barrier: Barrier) -> None:
    global _scorer, _barrier
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _barrier = barrier
    try:
        _scorer = Scorer(job)
    except PocketzooError as error:
        # Raised here it would break the pool, without a word about the reason.
        _scorer = error


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        # Killed, it could not tell the workers, which would wait for work for ever.
        os._exit(1)


def _ready() -> None:
    """Each worker takes one of these calls, because none returns before all have begun."""
    _barrier.wait(_START_SECONDS)
    if isinstance(_scorer, PocketzooError):
        raise _scorer


def _score(chunk: Chunk) -> Scored:
    assert isinstance(_scorer, Scorer)
    return _scorer(chunk), peak_bytes()
