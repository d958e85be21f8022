"""What is on disk about an artefact's past: logs of its trainings, and comparisons with other runtimes."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.rows import COMPARE, read
from zoo.card import Card
from zoo.errors import ArtefactError
from zoo.files import output_root

__all__ = ["LOG", "Curve", "PeerRows", "read_curves", "read_peers"]

LOG = "log.csv"
_COLUMNS = ("epoch", "lr", "loss", "validation_loss", "validation_top1", "seconds")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A training, epoch by epoch."""

    artefact: str
    stage: str
    """`train` or `recover`."""
    best_epoch: int
    """Whose weights were kept, counted from 1; 0: no epoch was better than what there was before."""
    epochs: tuple[Mapping[str, float | None], ...]
    """Rows of log.csv; None where a number is not finite."""


@dataclass(frozen=True, kw_only=True)
class PeerRows:
    """The newest comparison with other runtimes that had one of some files."""

    rows: tuple[Mapping[str, Any], ...]
    problem: str
    """Why the file of comparisons cannot be read; "": it can."""


def read_curves(found: Iterable[tuple[Path, Card]]) -> tuple[tuple[Curve, ...], tuple[str, ...]]:
    """The trainings of some artefacts, and a sentence on each log that cannot be used.

    Args:
        found: folder and card of each artefact; an artefact that was only pruned has no training of its own.
    """
    curves, problems = [], []
    for folder, card in dict(found).items():
        # Stages that trained record the best epoch; the folder's log is the last one's.
        trained = [entry for entry in card.lineage if "best_epoch" in entry.summary]
        path = folder / LOG
        if not trained or not path.is_file():
            continue
        stage = trained[-1]
        epochs = _read_log(path)
        if epochs is None:
            problems.append(f"{folder.name}/{LOG} cannot be read as a training log; train again to get a new one.")
        elif len(epochs) != stage.summary["epochs"]:
            problems.append(
                f"{folder.name}/{LOG} has {len(epochs)} epochs and the lineage says {stage.summary['epochs']}: it is "
                "of another training, and not shown."
            )
        else:
            best = int(stage.summary["best_epoch"])
            curves.append(Curve(artefact=folder.name, stage=stage.stage, best_epoch=best, epochs=epochs))
    return tuple(curves), tuple(problems)


def read_peers(digests: Collection[str]) -> PeerRows:
    """The rows of the newest run in output/bench/compare.jsonl that measured one of the files.

    Args:
        digests: SHA-256 of the files.
    """
    try:
        rows: Sequence[Mapping[str, Any]] = read(output_root() / "bench" / COMPARE)
    except ArtefactError as error:
        return PeerRows(rows=(), problem=str(error))
    runs = [(row["run"], row["family"]) for row in rows if row["digest"] in digests]
    return PeerRows(
        rows=tuple(row for row in rows if runs and (row["run"], row["family"]) == runs[-1]),
        problem="",
    )


def _read_log(path: Path) -> tuple[dict[str, float | None], ...] | None:
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [{name: float(row[name]) for name in _COLUMNS} for row in csv.DictReader(stream)]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuple({name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows)
