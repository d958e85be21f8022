"""The executor on Ray Data: the same chunks through the same scorer, as actors of a cluster.

Every machine of the cluster needs this package and sees the artefact and the source under the same paths.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa

from serve.bulk.inputs import Source, Span, read_span
from serve.bulk.process_pool import Scored
from serve.bulk.scorer import SCHEMA, Chunk, Job, Scorer
from zoo.base.errors import PocketzooError
from zoo.base.machine import peak_bytes

__all__ = ["on_ray"]

_OBJECT_STORE_BYTES = 512 << 20
"""Of a cluster that is started here; Ray takes a third of the memory otherwise."""

_BLOCK_BYTES = 1 << 20
"""Images from Parquet files that travel together."""

_READING = 0.5
"""Processors of a reading task. As many as an actor's, and Ray would make the actors read, a row group each."""

_KNOCK_SECONDS = 5.0

_CHUNKS = pa.schema(
    [
        ("number", pa.int64()),
        ("first", pa.int64()),
        ("names", pa.list_(pa.string())),
        ("images", pa.list_(pa.large_binary())),
        ("files", pa.list_(pa.binary())),
        ("base", pa.binary()),
    ]
)
_ROWS = SCHEMA.append(pa.field("_chunk", pa.int64())).append(pa.field("_memory", pa.int64()))


@contextmanager
def on_ray(job: Job, source: Source, start: int, workers: int) -> Iterator[tuple[int, Iterator[Scored]]]:
    """Score the chunks from number `start` on in actors: of the Ray cluster at RAY_ADDRESS, else of one here.

    Args:
        job: for every actor.
        source: cut into chunks.
        start: chunks before it are done.
        workers: actors; 0: as many as the cluster's processors allow, one of which reads.

    Yields:
        The actors' number, and the rows and memory of each chunk, in their order.

    Raises:
        PocketzooError: the cluster cannot be reached, or an actor failed.
    """
    # Read when Ray is imported; usage statistics would be sent, and `uv run` would be asked about on every start.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    # What Ray does by default from its next version on, or warns.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Of what it logs on this terminal, errors reach the user as exceptions anyway.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Small sources have fewer blocks than there are actors.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors", category=UserWarning)
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, job.threads, workers)
    try:
        workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1) - 1) // job.threads)
        yield workers, _results(job, source, start, workers)
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, threads: int, workers: int) -> None:
    from zoo.base.machine import cores

    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _knock(address)
            ray.init(address=address, **quiet)
        else:
            processors = (workers or max(1, cores() // threads)) * threads
            ray.init(
                address="local",
                num_cpus=processors + 1,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                **quiet,
            )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS={address}: no cluster answers" if address else "Ray cannot start a cluster here"
        remedy = (
            "start one with `ray start --head`, unset RAY_ADDRESS" if address else "see /tmp/ray/session_latest/logs"
        )
        raise PocketzooError(f"{where} ({error}); {remedy}, or use --executor embedded") from error


def _knock(address: str) -> None:
    """Find out in seconds what Ray takes minutes for.

    Raises:
        OSError: nobody listens at HOST:PORT; other forms of an address (`auto`, `local`) are left to Ray.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def _results(job: Job, source: Source, start: int, workers: int) -> Iterator[Scored]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    # A block is what an actor gets at once: what is read from one row group has to be enough for all of them.
    context.target_max_block_size = _BLOCK_BYTES
    dataset = _chunk_rows(source, start).map_batches(
        _Actor,
        fn_constructor_args=(asdict(job),),
        compute=ActorPoolStrategy(size=workers),
        num_cpus=job.threads,
        batch_size=1,
        batch_format="pyarrow",
    )
    try:
        yield from _by_chunk(dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise PocketzooError(
            f"Ray failed: {str(cause).strip().splitlines()[-1]}; the same command continues where it stopped"
        ) from error


def _chunk_rows(source: Source, start: int) -> Any:
    """A Ray data set with one row per chunk; images in Parquet files are read where the rows are made."""
    from ray.data import from_arrow

    if source.files:
        return from_arrow([_chunk_table(chunk) for chunk in source.read(start)])
    spans = [span for span in source.spans if span.first + span.count > source.rows_before(start)]
    tables = [pa.table({key: [value] for key, value in (asdict(span) | {"start": start}).items()}) for span in spans]
    return from_arrow(tables).map_batches(_read, num_cpus=_READING, batch_size=1, batch_format="pyarrow")


def _chunk_table(chunk: Chunk) -> pa.Table:
    row = {field.name: getattr(chunk, field.name) for field in fields(Chunk)}
    return pa.Table.from_pylist([row], schema=_CHUNKS)


def _read(table: pa.Table) -> Iterator[pa.Table]:
    (row,) = table.to_pylist()
    start = row.pop("start")
    for chunk in read_span(Span(**row), start=start):
        yield _chunk_table(chunk)


class _Actor:
    """A scorer in a process of Ray."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._scorer = Scorer(Job(**job))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Score the chunk in a table of one row."""
        (row,) = table.to_pylist()
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        chunk = Chunk(**values)
        rows = pa.Table.from_batches([self._scorer(chunk)])
        numbers, memory = [chunk.number] * len(rows), [peak_bytes()] * len(rows)
        return pa.table([*rows.columns, pa.array(numbers, pa.int64()), pa.array(memory, pa.int64())], schema=_ROWS)


def _by_chunk(tables: Iterator[pa.Table]) -> Iterator[Scored]:
    """Rows of each chunk, whatever the tables are that Ray makes of them."""
    waiting: pa.Table = _ROWS.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table.cast(_ROWS)])
        numbers = waiting["_chunk"].to_pylist()
        begin = 0
        for _, group in itertools.groupby(
            numbers[: len(numbers) - numbers[::-1].count(numbers[-1])] if numbers else []
        ):
            end = begin + len(list(group))
            yield _scored(waiting.slice(begin, end - begin))
            begin = end
        waiting = waiting.slice(begin)
    if len(waiting):
        yield _scored(waiting)


def _scored(table: pa.Table) -> Scored:
    (batch,) = table.select(SCHEMA.names).cast(SCHEMA).combine_chunks().to_batches()
    return batch, max(table["_memory"].to_pylist())
