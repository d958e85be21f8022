"""Bulk scoring: every image of a source through one artefact, into one Parquet file.

Two executors, one way: a source is cut into chunks (serve.bulk.inputs), an executor turns each into rows
(serve.bulk.scorer) in their order, and parts on disk (serve.bulk.partial_results) become the result. A run that was
killed continues with the first chunk that no part has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from serve.bulk.inputs import Source, open_source
from serve.bulk.partial_results import Parts, check_out, count, opened_parts, read_metadata
from serve.bulk.process_pool import Scored, in_processes
from serve.bulk.scorer import Job
from serve.settings import read_settings
from zoo.artefact.engines.runtimes import AUTO, preference
from zoo.artefact.environment import environment
from zoo.artefact.predictor import Predictor
from zoo.base.errors import UsageError, unknown_name
from zoo.base.files import graph_paths
from zoo.base.interrupt import deferred_signals
from zoo.base.machine import peak_bytes
from zoo.base.progress import note, track

__all__ = ["EXECUTORS", "ScoreConfig", "ScoreReport", "score"]

EXECUTORS = ("embedded", "ray")

_PART_ROWS, _PART_SECONDS = 1024, 10.0
"""A part is written when it has so many rows, or after so long: what a killed run has to score again."""


_Executor = Callable[[Job, Source, int, int], AbstractContextManager[tuple[int, Iterator[Scored]]]]


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What to score, and how."""

    artefact: Path
    """Folder (its INT8 file where there is one) or ONNX file."""
    source: str
    """Folder, glob, image or Parquet file; see serve.bulk.inputs.open_source."""
    out: Path
    """The result, a .parquet file."""
    engine: str | None = None
    """What computes, see zoo.artefact.predictor.Predictor."""
    executor: str = "embedded"
    """`embedded`: processes on this machine; `ray`: Ray Data, on RAY_ADDRESS or on a cluster of this machine."""
    workers: int = 0
    """Processes; 0: as many as the cores (or Ray's cluster) allow at these threads."""
    threads: int = 1
    """Of one inference. Processes use cores better than threads do: decoding and resizing have one each."""
    batch: int = 16
    """Images of one inference."""
    top: int = 5
    """Labels per image."""
    column: str | None = None
    key: str | None = None
    """Columns of a Parquet source; see serve.bulk.inputs.open_source."""
    force: bool = False
    """Replace a result, or the parts of an interrupted run, that differ."""
    command: str = ""
    """What the result says made it."""

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise unknown_name("executor", self.executor, EXECUTORS)
        preference(self.engine or AUTO)
        for name, least in (("workers", 0), ("threads", 1), ("batch", 1), ("top", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name}: expected at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """What a run did."""

    out: Path
    images: int
    """Rows of the result."""
    errors: int
    """Rows without an answer, each with its reason in `error`."""
    examples: tuple[str, ...]
    """The first of them."""
    scored: int
    """Rows of this run; the others were there."""
    workers: int
    start_seconds: float | None
    """Until every worker had loaded the artefact; None on Ray, whose actors start when the first chunk is asked for."""
    seconds: float
    """From there to the result on disk; on Ray the start of its actors is among them."""
    images_per_s: float
    """Of `scored` in `seconds`; 0 if nothing was left to do."""
    memory: tuple[tuple[int, int], ...]
    """Most bytes that (this process, any worker) had when a tenth of the run was done, and at its end.

    Empty if nothing was left to do."""


def score(config: ScoreConfig) -> ScoreReport:
    """Score a source, or what an interrupted run left of it.

    Raises:
        UsageError: options that do not fit, or a result or parts that another artefact, source or setting made.
        DataError: nothing to score.
        PocketzooError: the artefact cannot be loaded, or a worker died.
        KeyboardInterrupt: SIGINT or SIGTERM; what is scored is kept.
    """
    check_out(config.out)
    path = graph_paths(config.artefact)[-1]
    source = open_source(config.source, batch=config.batch, column=config.column, key=config.key, out=config.out)
    predictor = Predictor(path, threads=config.threads, engine=config.engine)
    limits = read_settings()
    job = Job(
        path=str(path.resolve()),
        digest=predictor.digest,
        threads=config.threads,
        engine=predictor.engine,
        batch=config.batch,
        top=config.top,
        max_pixels=limits.max_pixels,
        max_image_bytes=limits.max_image_bytes,
        formats=limits.formats,
    )
    name, reason = predictor.card.name, predictor.engine_reason
    del predictor
    decides = _decides(job, source)
    if config.out.exists() and not config.force and _is_current(config.out, decides):
        note(f"{config.out} is up to date; --force scores it again")
        return _Run(total=0).report(config.out)
    with opened_parts(config.out, decides, force=config.force) as parts:
        starts_first = config.executor != "ray"
        run = _Run(total=source.rows - source.rows_before(parts.done), starts_first=starts_first)
        if parts.done:
            note(f"continuing: {source.rows_before(parts.done)} of {source.rows} images are scored")
        with ExitStack() as stack:
            if parts.done < source.chunks:
                executor = _executor(config.executor)(job, source, parts.done, config.workers)
                run.workers, results = stack.enter_context(executor)
                run.follow(results, parts, source)
            parts.assemble(_metadata(config, name, path, decides) | {"engine_reason": reason})
            run.end = time.perf_counter()
    return run.report(config.out)


class _Run:
    """The clock and the memory of a run, and its rows on their way from an executor to parts."""

    def __init__(self, *, total: int, starts_first: bool = True) -> None:
        self.total, self.workers, self.starts_first = total, 0, starts_first
        self.begin = self.ready = self.saved = self.end = time.perf_counter()
        self.memory: list[tuple[int, int]] = []
        self.rows: list[pa.RecordBatch] = []

    def follow(self, results: Iterator[Scored], parts: Parts, source: Source) -> None:
        self.ready = self.saved = time.perf_counter()
        left, most = source.chunks - parts.done, 0
        bar = {"initial": parts.done, "unit": " images", "unit_scale": source.rows / source.chunks}
        tracked = track(results, total=source.chunks, description="Scoring", **bar)
        with deferred_signals() as stop_if_asked:
            try:
                for number, (rows, memory) in enumerate(tracked, start=1):
                    self.rows.append(rows)
                    most = max(most, memory)
                    if number in (-(-left // 10), left):
                        self.memory.append((peak_bytes(), most))
                    if self._is_due():
                        self._save(parts)
                    stop_if_asked()
            finally:
                self._save(parts)

    def _is_due(self) -> bool:
        return sum(map(len, self.rows)) >= _PART_ROWS or time.perf_counter() - self.saved > _PART_SECONDS

    def _save(self, parts: Parts) -> None:
        if self.rows:
            parts.write(self.rows)
        self.rows, self.saved = [], time.perf_counter()

    def report(self, out: Path) -> ScoreReport:
        totals, seconds = count(out), self.end - self.ready
        return ScoreReport(
            out=out,
            images=totals.images,
            errors=totals.errors,
            examples=totals.examples,
            scored=self.total,
            workers=self.workers,
            start_seconds=self.ready - self.begin if self.starts_first else None,
            seconds=seconds,
            images_per_s=self.total / seconds if seconds else 0.0,
            memory=tuple(self.memory),
        )


def _executor(name: str) -> _Executor:
    if name == "embedded":
        return in_processes
    from serve.bulk.ray_engine import on_ray

    return on_ray


def _decides(job: Job, source: Source) -> dict[str, Any]:
    """All that decides about the rows; how many workers and threads there are does not."""
    settings = {key: value for key, value in asdict(job).items() if key not in {"path", "digest", "threads"}}
    settings["formats"] = list(job.formats)
    return {"artefact_digest": job.digest, "source": source.text, "source_digest": source.digest, "settings": settings}


def _is_current(out: Path, decides: dict[str, Any]) -> bool:
    found = read_metadata(out)
    if found is None:
        raise UsageError(f"{out}: is there already, and no result of this command; name another --out, or add --force")
    if changed := [key for key in decides if found.get(key) != decides[key]]:
        raise UsageError(
            f"{out}: is there already, with another {', '.join(key.replace('_', ' ') for key in changed)}; "
            "--force scores it again, or name another --out"
        )
    return True


def _metadata(config: ScoreConfig, name: str, path: Path, decides: dict[str, Any]) -> dict[str, Any]:
    where = {key: value for key, value in environment("pyarrow").items() if key in {"commit", "versions", "provider"}}
    return decides | where | {"artefact": name, "file": path.name, "command": config.command}
