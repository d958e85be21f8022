"""How soon the first of very many images is scored, and whether listing them all takes memory.

The folder is simulated, as one that nothing but its length tells from a real one: a folder's entries come again and
again. The run ends when all of them are listed, long before all are scored. Run as `python -m bench.listing JOB`, this
module is that run.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.artefact_fields import loaded_fields
from bench.rows import stamp
from serve.bulk.score import ScoreConfig, score
from zoo.artefact.clock import alternate, since_start
from zoo.artefact.environment import load_average
from zoo.artefact.predictor import Predictor
from zoo.base.errors import DataError, UsageError
from zoo.base.files import graph_paths
from zoo.base.machine import cores, peak_bytes

__all__ = ["ListingConfig", "Run", "measure_listing", "run"]

_TENTHS = 10


@dataclass(frozen=True, kw_only=True)
class ListingConfig:
    """What to simulate."""

    artefact: Path
    source: str
    """Folder of readable images."""
    names: int
    """Entries of the simulated folder."""
    workers: int = 0
    """0: as many as there are cores."""
    threads: int = 1
    batch: int = 16
    engine: str | None = None
    """As zoo.artefact.predictor.Predictor takes it."""

    def __post_init__(self) -> None:
        if self.names < 1:
            raise UsageError(f"--names: expected at least 1, got {self.names}")
        if not Path(self.source).is_dir():
            raise UsageError(f"--names: expected a folder whose images come again and again, got {self.source}")


@dataclass(frozen=True, kw_only=True)
class Run:
    """One process's task. Plain values."""

    file: str
    engine: str
    """What computes."""
    source: str
    names: int
    workers: int
    threads: int
    batch: int


def measure_listing(config: ListingConfig) -> dict[str, Any]:
    """Score a simulated folder until all of it is listed: one row for LISTING.

    Raises:
        PocketzooError: the run failed.
    """
    path = graph_paths(config.artefact)[-1]
    chosen = Predictor(path, threads=config.threads, engine=config.engine)
    task = Run(
        file=str(path),
        engine=chosen.engine,
        source=config.source,
        names=config.names,
        workers=config.workers or cores(),
        threads=config.threads,
        batch=config.batch,
    )
    load = load_average()
    ((_, _, found),) = alternate({"listing": ["-m", "bench.listing", json.dumps(asdict(task))]}, 1)
    return (
        stamp()
        | loaded_fields(chosen)
        | {
            "load_average": load,
            "source": Path(config.source).name,
            "names": config.names,
            "workers": task.workers,
            "threads": config.threads,
            "batch": config.batch,
            **found,
        }
    )


@dataclass
class _Watched:
    """When the first images were scored, and the memory since."""

    names: int
    first_seconds: float | None = None
    peak_mb: list[float] = field(default_factory=list)
    """At the first images, then after each tenth of the names."""

    def __call__(self, scored: int, listed: int, known: bool) -> None:
        if self.first_seconds is None:
            self.first_seconds = since_start()
            self.peak_mb.append(peak_bytes() / 1e6)
        tenths = _TENTHS if known else listed * _TENTHS // self.names
        while len(self.peak_mb) <= tenths:
            self.peak_mb.append(peak_bytes() / 1e6)
        if known:
            raise _AllListedError(scored)


class _AllListedError(Exception):
    """Ends the run."""


def run(task: Run) -> dict[str, Any]:
    """Score until all names are listed: seconds since the process began, images scored, and memory.

    Raises:
        DataError: all were scored before: there are too few.
    """
    watched = _Watched(task.names)
    with tempfile.TemporaryDirectory(prefix="pocketzoo-") as folder, _repeated(task.source, task.names):
        config = ScoreConfig(
            artefact=Path(task.file),
            source=task.source,
            out=f"{folder}/results",
            engine=task.engine,
            workers=task.workers,
            threads=task.threads,
            batch=task.batch,
        )
        try:
            score(config, watch=watched)
        except _AllListedError as ended:
            return {
                "first_seconds": watched.first_seconds,
                "listed_seconds": since_start(),
                "n": ended.args[0],
                "peak_mb": watched.peak_mb,
            }
    raise DataError(f"--names: {task.names} names were scored before all were listed; name more")


@dataclass(frozen=True, slots=True)
class _Entry:
    """An entry of the simulated folder, looked at as often as a real one."""

    folder: str
    name: str

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return False

    def stat(self) -> os.stat_result:
        return os.stat(f"{self.folder}/{self.name}")  # noqa: PTH116


@contextmanager
def _repeated(folder: str, names: int) -> Iterator[None]:
    """Let the files of a folder come again and again, `names` of them."""
    real = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())

    scandir = os.scandir

    @contextmanager
    def entries() -> Iterator[Iterator[_Entry]]:
        yield (_Entry(folder, name) for name in itertools.islice(itertools.cycle(real), names))

    def simulated(path: Any = ".") -> Any:
        return entries() if str(path).rstrip("/") == folder.rstrip("/") else scandir(path)

    with patch.object(os, "scandir", simulated):
        yield


if __name__ == "__main__":
    print(json.dumps(run(Run(**json.loads(sys.argv[1])))))
