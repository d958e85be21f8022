"""What is on disk about an artefact's past: logs of its trainings, and comparisons with other runtimes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.rows import COMPARE, read
from zoo.artefact.card import Card, LineageEntry
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, output_root
from zoo.networks import checkpoint
from zoo.training.loop.state import LOG, read_log
from zoo.training.workspace import card_if_readable

__all__ = ["LOG", "Curve", "PeerRows", "read_curves", "read_peers"]

_Lineage = tuple[LineageEntry, ...]


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


def read_curves(
    found: Iterable[tuple[Path, Card]], roots: Sequence[Path] = ()
) -> tuple[tuple[Curve, ...], tuple[str, ...]]:
    """The trainings that artefacts' lineages record, and a sentence on each one whose log cannot be used.

    A training's log is beside the artefacts whose last training it was: those that are given, or an ancestor that is
    among the roots' checkpoints.

    Args:
        found: folder and card of each artefact.
        roots: folders of artefacts to look in.
    """
    folders = dict(found)
    trainings: list[_Lineage] = []
    for card in folders.values():
        for place in range(len(card.lineage)):
            training = card.lineage[: place + 1]
            if _last_training(training) == training and training not in trainings:
                trainings.append(training)
    curves, problems = [], []
    for training in trainings:
        tried = [_curve(folder, training[-1]) for folder in _folders(training, folders, roots)]
        usable = [entry for entry in tried if isinstance(entry, Curve)]
        if usable:
            curves.append(usable[0])
        else:
            stage = f"{len(training)} ({training[-1].stage})"
            problems += [entry for entry in tried if isinstance(entry, str)] or [
                f"The learning curve of stage {stage} is not shown: no folder of that training with a {LOG} was found."
            ]
    return tuple(curves), tuple(dict.fromkeys(problems))


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


def _last_training(lineage: _Lineage) -> _Lineage:
    """The lineage up to its last training; stages that trained record the best epoch."""
    places = [place for place, stage in enumerate(lineage) if "best_epoch" in stage.summary]
    return lineage[: places[-1] + 1] if places else ()


def _folders(training: _Lineage, folders: Mapping[Path, Card], roots: Sequence[Path]) -> Iterator[Path]:
    """Folders with a log whose last training it was: the nearest ones, else those of the roots."""
    near = [folder for folder, card in folders.items() if _last_training(card.lineage) == training]
    near = [folder for folder in near if (folder / LOG).is_file()]
    yield from near
    if near:
        return
    for root in dict.fromkeys(root.resolve() for root in roots):
        for path in sorted(root.glob(f"*/{CHECKPOINT}")):
            card = card_if_readable(checkpoint.read_card, path) if path.with_name(LOG).is_file() else None
            if card and _last_training(card.lineage) == training:
                yield path.parent


def _curve(folder: Path, stage: LineageEntry) -> Curve | str:
    """The log of a folder, or why it is not that of the stage."""
    epochs = _read_log(folder / LOG)
    if epochs is None:
        return f"{folder.name}/{LOG} cannot be read as a training log; train again to get a new one."
    if len(epochs) != stage.summary["epochs"]:
        return (
            f"{folder.name}/{LOG} has {len(epochs)} epochs and the lineage says {stage.summary['epochs']}: it is "
            "of another training, and not shown."
        )
    return Curve(artefact=folder.name, stage=stage.stage, best_epoch=int(stage.summary["best_epoch"]), epochs=epochs)


def _read_log(path: Path) -> tuple[dict[str, float | None], ...] | None:
    try:
        rows = read_log(path)
    except ArtefactError:
        return None
    return tuple({name: value if math.isfinite(value) else None for name, value in row.items()} for row in rows)
