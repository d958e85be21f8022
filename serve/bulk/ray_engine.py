"""The executor on Ray Data: a task lists the partitions, actors read, score and write one each; counts come back.

Every machine of the cluster needs this package and sees the artefact, the source and the result under the same paths.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serve.bulk.inputs import Partition, Source
from serve.bulk.parts import Parts, Summary
from serve.bulk.reading import read
from serve.bulk.scorer import Job, Scorer
from zoo.base.errors import PocketzooError
from zoo.base.machine import peak_bytes

__all__ = ["on_ray"]

_OBJECT_STORE_BYTES = 512 << 20
"""Of a cluster that is started here; Ray takes a third of the memory otherwise."""

_LISTING = 0.5
"""Processors of the task that lists. As many as an actor's, and Ray would make the actors list, each for itself."""

_KNOCK_SECONDS = 5.0


@contextmanager
def on_ray(
    job: Job, source: Source, parts: Parts, workers: int, scored: Callable[[int], None]
) -> Iterator[tuple[int, Iterator[tuple[Summary, int]]]]:
    """Score in actors what has no part yet: of the Ray cluster at RAY_ADDRESS, else of one here.

    Args:
        job: for every actor.
        source: of the images.
        parts: that are there, and where the others go.
        workers: actors; 0: as many as the cluster's processors allow, one of which lists.
        scored: told how many images a part had.

    Yields:
        The actors' number; and for each part, in any order, its summary and the most bytes of memory an actor had.

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
        yield workers, _results(job, source, parts, workers, scored)
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


def _results(
    job: Job, source: Source, parts: Parts, workers: int, scored: Callable[[int], None]
) -> Iterator[tuple[Summary, int]]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, from_items

    context = DataContext.get_current()
    context.enable_progress_bars = False
    # A block is what an actor gets at once: one partition, or a few actors would have them all.
    context.target_max_block_size = 1
    dataset = (
        from_items([source])
        .flat_map(_partitions, num_cpus=_LISTING)
        .map(
            _Actor,
            fn_constructor_args=(job, parts),
            compute=ActorPoolStrategy(size=workers),
            num_cpus=job.threads,
        )
    )
    memory = 0
    try:
        for row in dataset.iter_rows():
            if isinstance(row["summary"], PocketzooError):
                raise row["summary"]
            memory = max(memory, row["memory"])
            if row["summary"].fresh:
                scored(row["summary"].rows)
            yield row["summary"], memory
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise PocketzooError(
            f"Ray failed: {str(cause).strip().splitlines()[0]}; the same command continues where it stopped"
        ) from error


def _partitions(row: dict[str, Source]) -> Iterator[dict[str, Partition | PocketzooError]]:
    """Errors of this project travel as values: what Ray makes of exceptions hides them."""
    try:
        for partition in row["item"].partitions():
            yield {"item": partition}
    except PocketzooError as error:
        yield {"item": error}


class _Actor:
    """A scorer in a process of Ray."""

    def __init__(self, job: Job, parts: Parts) -> None:
        self._scorer, self._parts = Scorer(job), parts

    def __call__(self, row: dict[str, Partition | PocketzooError]) -> dict[str, Any]:
        """Score a partition, unless its part is there: its summary, or why there is none."""
        try:
            return {"summary": self._part(row["item"]), "memory": peak_bytes()}
        except PocketzooError as error:
            return {"summary": error, "memory": 0}

    def _part(self, partition: Partition | PocketzooError) -> Summary:
        if isinstance(partition, PocketzooError):
            raise partition
        if summary := self._parts.find(partition):
            return summary
        job = self._scorer.job
        chunks = read(partition, batch=job.batch, most=job.max_image_bytes)
        return self._parts.write(partition, map(self._scorer, chunks))
