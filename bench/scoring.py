"""How fast bulk scoring is, against the same images in loops that do nothing else.

The references read files, decode, preprocess, infer and throw the answers away: one process with as many threads of
inference as there are cores, one process with a thread and a session per core, and a process per core. Scoring also
collects and writes parts, and lists the images meanwhile, which the references have done before. Loading the artefact
counts nowhere. Run as
`python -m bench.scoring JOB`, this module is one such turn.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

from bench.artefact_fields import loaded_fields
from bench.rows import stamp
from serve.bulk.inputs import Source
from serve.bulk.score import ScoreConfig, score
from zoo.artefact.clock import alternate
from zoo.artefact.environment import load_average
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError, DataError, ImageError, UsageError
from zoo.base.files import graph_paths
from zoo.base.interrupt import end_with_parent
from zoo.base.machine import cores
from zoo.base.statistics.intervals import ratio

__all__ = ["REFERENCES", "SpeedConfig", "Turn", "measure_speed", "take_turn"]

REFERENCES = ("session threads", "threads", "processes")
_SCORE = "score"

_predictor: Predictor
_all_there: Barrier


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What to compare."""

    artefact: Path
    source: str
    """Folder or glob of readable images."""
    rounds: int = 5
    workers: int = 0
    """Of scoring, and of the references; 0: as many as there are cores."""
    threads: int = 1
    """Of one inference while scoring."""
    batch: int = 16
    engine: str | None = None
    """As zoo.artefact.predictor.Predictor takes it."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UsageError(f"--rounds: expected at least 1, got {self.rounds}")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One process's task. Plain values."""

    way: str
    """`score`, or one of REFERENCES."""
    file: str
    engine: str
    """What computes."""
    source: str
    workers: int
    threads: int
    batch: int


def measure_speed(config: SpeedConfig) -> dict[str, Any]:
    """Measure scoring and the references in alternating rounds: one row for SCORE.

    `ratio` (zoo.base.statistics.intervals) is of scoring's images per second and those of the round's fastest loop.

    Raises:
        DataError: nothing to score, images in a Parquet file, or one that cannot be read.
    """
    path = graph_paths(config.artefact)[-1]
    files = _files(config.source)
    if not files:
        raise DataError(f"{config.source}: the references read image files; name a folder or a glob of them")
    workers = config.workers or cores()
    chosen = Predictor(path, threads=config.threads, engine=config.engine)
    load = load_average()
    turns = [
        Turn(
            way=way,
            file=str(path),
            engine=chosen.engine,
            source=config.source,
            workers=workers,
            threads=config.threads,
            batch=config.batch,
        )
        for way in (_SCORE, *REFERENCES)
    ]
    commands = {turn.way: ["-m", "bench.scoring", json.dumps(asdict(turn))] for turn in turns}
    found: dict[str, list[dict[str, Any]]] = {turn.way: [] for turn in turns}
    for way, _, result in alternate(commands, config.rounds):
        found[way].append(result)
    rates = {way: [result["images_per_s"] for result in results] for way, results in found.items()}
    fastest = [max(rates[way][number] for way in REFERENCES) for number in range(config.rounds)]
    share = ratio(rates[_SCORE], fastest)
    return (
        stamp()
        | loaded_fields(chosen)
        | {
            "load_average": load,
            "source": Path(config.source).name,
            "executor": "embedded",
            "workers": workers,
            "threads": config.threads,
            "batch": config.batch,
            "n": len(files),
            "rounds": config.rounds,
            "round_images_per_s": rates,
            "images_per_s": median(rates[_SCORE]),
            "references": {way: median(rates[way]) for way in REFERENCES},
            "ratio": share.value,
            "ratio_low": share.low,
            "ratio_high": share.high,
            "peak_mb": max(result["peak_mb"] for result in found[_SCORE]),
            "worker_peak_mb": max(result["worker_peak_mb"] for result in found[_SCORE]),
        }
    )


def take_turn(turn: Turn) -> dict[str, Any]:
    """Score or read all images once: images per second, and scoring's peak memory in MB.

    Raises:
        DataError: a reference came upon an image that cannot be read.
    """
    if turn.way == _SCORE:
        return _take_score(turn)
    files = _files(turn.source)
    if turn.way == "processes":
        seconds = _in_processes(turn, files)
    else:
        count = 1 if turn.way == "session threads" else turn.workers
        predictors = [
            Predictor(Path(turn.file), threads=turn.workers // count, engine=turn.engine) for _ in range(count)
        ]
        seconds = _in_threads(predictors, files, turn.batch)
    return {"images_per_s": len(files) / seconds}


def _files(source: str) -> list[str]:
    return [file for partition in Source(text=source, size=1 << 12).partitions() for file in partition.files]


def _take_score(turn: Turn) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder:
        config = ScoreConfig(
            artefact=Path(turn.file),
            source=turn.source,
            out=f"{folder}/results",
            engine=turn.engine,
            workers=turn.workers,
            threads=turn.threads,
            batch=turn.batch,
        )
        report = score(config)
    here, there = report.memory[-1]
    return {"images_per_s": report.images_per_s, "peak_mb": here / 1e6, "worker_peak_mb": there / 1e6}


def _loop(predictor: Predictor, files: Sequence[str], batch: int) -> None:
    for first in range(0, len(files), batch):
        data = []
        for file in files[first : first + batch]:
            with open(file, "rb") as stream:  # noqa: PTH123 - paths need not be valid Unicode
                data.append(stream.read())
        try:
            predictor.predict(data)
        except ImageError as error:
            raise DataError(f"{file!r} or one before it: {error}; remove it to measure speed") from error


def _in_threads(predictors: Sequence[Predictor], files: list[str], batch: int) -> float:
    shares = _shares(files, len(predictors))
    with ThreadPoolExecutor(len(predictors)) as pool:
        begin = time.perf_counter()
        list(pool.map(_loop, predictors, shares, itertools.repeat(batch)))
        return time.perf_counter() - begin


def _in_processes(turn: Turn, files: list[str]) -> float:
    context = get_context("spawn")
    all_there = context.Barrier(turn.workers)
    with ProcessPoolExecutor(turn.workers, context, initializer=_load, initargs=(turn, all_there)) as pool:
        try:
            list(pool.map(_wait, range(turn.workers)))
            begin = time.perf_counter()
            list(pool.map(_share, _shares(files, turn.workers), itertools.repeat(turn.batch)))
            return time.perf_counter() - begin
        except BrokenProcessPool as error:
            raise ArtefactError(
                "a process of the reference ended: killed, as when memory is short, or by what stands above; try fewer "
                "--workers"
            ) from error


def _shares(files: list[str], count: int) -> list[list[str]]:
    return [files[place::count] for place in range(count)]


def _load(turn: Turn, all_there: Barrier) -> None:
    global _predictor, _all_there
    end_with_parent()
    _predictor, _all_there = Predictor(Path(turn.file), threads=1, engine=turn.engine), all_there


def _wait(_: int) -> None:
    """Each process takes one of these calls, because none returns before all have begun."""
    _all_there.wait()


def _share(files: list[str], batch: int) -> None:
    _all_there.wait()
    _loop(_predictor, files, batch)


if __name__ == "__main__":
    print(json.dumps(take_turn(Turn(**json.loads(sys.argv[1])))))
