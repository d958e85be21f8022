"""The embedded executor: worker processes on this machine, fed from a window of chunks that never grows."""

from __future__ import annotations

import itertools
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from operator import itemgetter

import pyarrow as pa

from serve.bulk.inputs import Partition, Source
from serve.bulk.parts import Parts, Summary
from serve.bulk.reading import read
from serve.bulk.scorer import Chunk, Job, Scorer
from zoo.base.errors import PocketzooError
from zoo.base.interrupt import deferred_signals, end_with_parent
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
def in_processes(
    job: Job, source: Source, parts: Parts, workers: int, scored: Callable[[int], None]
) -> Iterator[tuple[int, Iterator[tuple[Summary, int]]]]:
    """Score in processes of this machine what has no part yet.

    Args:
        job: for every process.
        source: of the images.
        parts: that are there, and where the others go.
        workers: processes; 0: as many as the cores allow.
        scored: told how many images a chunk had.

    Yields:
        The number of processes, all of which have loaded the artefact (0 where nothing is to be done); and for each
        part, in their order or found before, its summary and the most bytes of memory a worker had.

    Raises:
        PocketzooError: a process cannot load the artefact, or died.
    """
    partitions = source.partitions()
    there: deque[Summary] = deque()
    missing = (each for each in partitions if not _is_there(parts, each, there))
    first = next(missing, None)
    if first is None:
        yield 0, ((summary, 0) for summary in there)
        return
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
        chunks = (
            (partition, chunk)
            for partition in itertools.chain([first], missing)
            for chunk in read(partition, batch=job.batch, most=job.max_image_bytes)
        )
        with deferred_signals() as stop_if_asked:
            results = _results(pool, chunks, workers * _AHEAD, stop_if_asked)
            yield workers, _written(results, parts, there, scored)
    finally:
        pool.shutdown(cancel_futures=True)


def _is_there(parts: Parts, partition: Partition, there: deque[Summary]) -> bool:
    if summary := parts.find(partition):
        there.append(summary)
    return summary is not None


def _written(
    results: Iterator[tuple[Partition, Scored]], parts: Parts, there: deque[Summary], scored: Callable[[int], None]
) -> Iterator[tuple[Summary, int]]:
    memory = 0

    def rows(group: Iterator[tuple[Partition, Scored]]) -> Iterator[pa.RecordBatch]:
        nonlocal memory
        for _, (batch, most) in group:
            memory = max(memory, most)
            scored(len(batch))
            yield batch

    for partition, group in itertools.groupby(results, key=itemgetter(0)):
        yield parts.write(partition, rows(group)), memory
        while there:
            yield there.popleft(), memory
    while there:
        yield there.popleft(), memory


def _results(
    pool: ProcessPoolExecutor,
    chunks: Iterator[tuple[Partition, Chunk]],
    window: int,
    stop_if_asked: Callable[[], None],
) -> Iterator[tuple[Partition, Scored]]:
    waiting: deque[tuple[Partition, Chunk, Future[Scored]]] = deque()
    try:
        while True:
            for partition, chunk in itertools.islice(chunks, window - len(waiting)):
                waiting.append((partition, chunk, pool.submit(_score, chunk)))
            if not waiting:
                return
            partition, _, future = waiting[0]
            scored = future.result()
            waiting.popleft()
            stop_if_asked()
            yield partition, scored
    except BrokenProcessPool as error:
        raise PocketzooError(_broken([chunk for _, chunk, _ in waiting])) from error


def _broken(chunks: list[Chunk]) -> str:
    names = [item.name for chunk in chunks for item in chunk.items]
    place = f"at work on {names[0]} to {names[-1]}" if names else "while it started"
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
    end_with_parent()
    _barrier = barrier
    try:
        _scorer = Scorer(job)
    except PocketzooError as error:
        # Raised here it would break the pool, without a word about the reason.
        _scorer = error


def _ready() -> None:
    """Each worker takes one of these calls, because none returns before all have begun."""
    _barrier.wait(_START_SECONDS)
    if isinstance(_scorer, PocketzooError):
        raise _scorer


def _score(chunk: Chunk) -> Scored:
    assert isinstance(_scorer, Scorer)
    return _scorer(chunk), peak_bytes()
