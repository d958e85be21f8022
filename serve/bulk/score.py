"""Bulk scoring: every image of a source through one artefact, into Parquet files.

Two executors, one way: a source is cut into partitions while it is listed (serve.bulk.inputs), each is read in chunks
(serve.bulk.reading) that become rows (serve.bulk.scorer), and its rows one file (serve.bulk.parts). A run that was
stopped continues with the first partition that has no file.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serve.bulk.inputs import Source
from serve.bulk.parts import Parts, Summary
from serve.bulk.process_pool import in_processes
from serve.bulk.scorer import Job
from serve.settings import read_settings
from zoo.artefact.engines.names import AUTO, preference
from zoo.artefact.environment import environment
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import FORMATS
from zoo.base.errors import PocketzooError, UsageError, unknown_name
from zoo.base.files import graph_paths
from zoo.base.machine import peak_bytes
from zoo.base.progress import Ongoing, note

__all__ = ["EXECUTORS", "ScoreConfig", "ScoreReport", "Watch", "score"]

EXECUTORS = ("embedded", "ray")

_Results = tuple[int, Iterator[tuple[Summary, int]]]
_Executor = Callable[[Job, Source, Parts, int, Callable[[int], None]], AbstractContextManager[_Results]]

Watch = Callable[[int, int, bool], None]
"""Told whenever images are done: how many are, how many inputs are listed, and whether these are all there are."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """What to score, and how."""

    artefact: Path
    """Folder (its INT8 file where there is one) or ONNX file."""
    source: str
    """Folder, glob, image, Parquet file or tar shard, or the URL of one; see serve.bulk.inputs.Source."""
    out: str
    """Folder or URL of the result: a Parquet file per partition; see serve.bulk.parts."""
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
    partition: int = 4096
    """Inputs of a file of the result, what a stopped run loses at most; a tar shard makes one file."""
    column: str | None = None
    key: str | None = None
    """Columns of a Parquet source; see serve.bulk.inputs.Source."""
    force: bool = False
    """Begin again: remove what an earlier run wrote."""
    command: str = ""
    """What the result says made it."""

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise unknown_name("executor", self.executor, EXECUTORS)
        preference(self.engine or AUTO)
        for name, least in (("workers", 0), ("threads", 1), ("batch", 1), ("top", 1), ("partition", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name}: expected at least {least}, got {getattr(self, name)}")


@dataclass(kw_only=True)
class ScoreReport:
    """What a run did."""

    out: str
    images: int = 0
    """Rows of the result."""
    errors: int = 0
    """Rows without an answer, each with its reason in `error`."""
    examples: list[str] = field(default_factory=list)
    """The first of them."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Files, and members of tar shards, that were not scored, by reason."""
    scored: int = 0
    """Rows of this run; the others were there."""
    parts: int = 0
    """Files of the result."""
    workers: int = 0
    start_seconds: float | None = None
    """Until every worker had loaded the artefact; None on Ray, whose actors start when the first part is asked for."""
    seconds: float = 0.0
    """From there to the last part; on Ray the start of its actors is among them."""
    images_per_s: float = 0.0
    """Of `scored` in `seconds`; 0 if nothing was left to do."""
    memory: list[tuple[int, int]] = field(default_factory=list)
    """Most bytes that (this process, any worker) had after the first part of this run, and at its end."""


def score(config: ScoreConfig, *, watch: Watch | None = None) -> ScoreReport:
    """Score a source, or what a stopped run left of it.

    Args:
        config: what to score, and how.
        watch: what it raises ends the run as a failure does; finished parts are kept.

    Raises:
        UsageError: options that do not fit, or parts that another artefact, other inputs or settings made.
        DataError: nothing to score.
        PocketzooError: the artefact cannot be loaded, or a worker died.
        KeyboardInterrupt: SIGINT or SIGTERM; finished parts are kept.
    """
    path = graph_paths(config.artefact)[-1]
    out = config.out.removeprefix("file://")
    source = Source(text=config.source, size=config.partition, column=config.column, key=config.key, out=out)
    next(source.partitions())  # or it says what is wrong, before anything is made
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
        formats=limits.formats or FORMATS,
    )
    parts = Parts(out=out, decides=_decides(config, job), about=_about(config, predictor, path))
    del predictor
    report = ScoreReport(out=config.out)
    progress = _Progress(source, watch)
    with parts.opened(force=config.force):
        begin = time.perf_counter()
        executor = _executor(config.executor)
        with executor(job, source, parts, config.workers, progress.scored) as (report.workers, results):
            ready = time.perf_counter()
            if config.executor == "embedded":
                report.start_seconds = ready - begin
            _follow(results, report, progress)
            report.seconds = time.perf_counter() - ready
        report.passed_over = dict(progress.close() + Counter(report.passed_over))
        report.images_per_s = report.scored / report.seconds if report.scored else 0.0
        said = {"images": report.images, "errors": report.errors, "passed_over": report.passed_over}
        parts.finish(report.parts, said)
    if not report.scored:
        note(f"{config.out} is up to date; --force scores it again")
    return report


class _Progress:
    """What is done, of all that there is to do, which is listed in the background."""

    def __init__(self, source: Source, watch: Watch | None) -> None:
        self.passed: Counter[str] = Counter()
        self._watch = watch
        self._listed, self._unit, self._known = 0, "images", False
        self._images = self._parts = 0
        self._thread = threading.Thread(target=self._list, args=(source,), daemon=True)
        self._thread.start()
        self._shown = Ongoing("Scoring", "images")

    def _list(self, source: Source) -> None:
        try:
            for listed, unit in source.count(self.passed):
                self._listed, self._unit = listed, unit
            self._known = True
        except PocketzooError:
            pass  # those who list in order to read come upon the same, and say so

    def scored(self, images: int, *, skipped: bool = False) -> None:
        """Count images."""
        self._images += images
        state, total = "" if self._known else f"{self._listed:,} {self._unit} listed so far", None
        if self._unit == "shards":
            state = f"{self._parts:,} of {self._listed:,} shards{', listing goes on' * (not self._known)}"
            total = self._images * self._listed / self._parts if self._known and self._parts else None
        elif self._known:
            total = self._listed
        self._shown.add(images, total=total, state=state, skipped=skipped)
        if self._watch:
            self._watch(self._images, self._listed, self._known)

    def part(self, summary: Summary) -> None:
        """Count a part; its images are counted if this run has not scored them."""
        self._parts += 1
        if not summary.fresh:
            self.scored(summary.rows, skipped=True)

    def close(self) -> Counter[str]:
        """Wait for the listing: reasons why files were left out."""
        self._shown.close()
        self._thread.join()
        return self.passed


def _follow(results: Iterator[tuple[Summary, int]], report: ScoreReport, progress: _Progress) -> None:
    """Add up the parts as they come."""
    memory = 0
    for summary, memory in results:
        progress.part(summary)
        report.parts += 1
        report.images += summary.rows
        report.errors += summary.errors
        report.examples += summary.examples[: 3 - len(report.examples)]
        report.passed_over = dict(Counter(report.passed_over) + Counter(summary.passed))
        if summary.fresh:
            report.scored += summary.rows
            if not report.memory:
                report.memory = [(peak_bytes(), memory)]
    if report.memory:
        report.memory.append((peak_bytes(), memory))


def _executor(name: str) -> _Executor:
    if name == "embedded":
        return in_processes
    from serve.bulk.ray_engine import on_ray

    return on_ray


def _decides(config: ScoreConfig, job: Job) -> dict[str, Any]:
    """All that decides about the rows besides the inputs; how many workers and threads there are does not."""
    settings = {key: value for key, value in asdict(job).items() if key not in {"path", "digest", "threads"}}
    settings |= {"formats": list(job.formats), "partition": config.partition}
    return {"artefact_digest": job.digest, "settings": settings}


def _about(config: ScoreConfig, predictor: Predictor, path: Path) -> dict[str, Any]:
    where = {key: value for key, value in environment("pyarrow").items() if key in {"commit", "versions", "provider"}}
    return where | {
        "artefact": predictor.card.name,
        "file": path.name,
        "source": config.source,
        "command": config.command,
        "engine_reason": predictor.engine_reason,
    }
