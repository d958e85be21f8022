"""What a network forgets of its first task while it learns a second one.

A network is trained on an old task, then on a new one in several ways. Each time the features of the new training go
under the classifier of the old one, and its accuracy on the old task is measured again: what it lost is the forgetting
of Chaudhry et al. 2018 (arXiv 1801.10112, section 4), for two tasks.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo.artefact.card import Card, Input, Metrics
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import CHECKPOINT, code_commit, write_bytes, write_table
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages
from zoo.networks.checkpoint import load
from zoo.networks.transplant import classifier_tensors, transplant_head
from zoo.training.evaluate import accuracy, check_labels, torch_logits
from zoo.training.recipe import Run
from zoo.training.stage import source_of, train

__all__ = ["Forgetting", "Row", "forgetting", "split_runs", "write_forgetting"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network: the first after the old task, every other after the new one."""

    run: str
    old: Metrics
    """On the old task's validation images, with the old classifier."""
    new: Metrics | None
    """On the new task's validation images; None for the first network where the tasks have other labels."""
    old_test: Metrics | None = None
    new_test: Metrics | None = None
    forgotten: float
    """Top-1 on the old task's validation images that was lost since the first network (a fraction; may be negative)."""
    saved: float | None
    """Share of what the first of the other networks forgot that this one did not; None where that one forgot nothing,
    and for the first network."""
    moved: float
    """Distance of the weights outside of the classifier from the first network's, relative to their length."""
    trainable: int | None
    """How many weights its training could change."""


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """The whole experiment."""

    old_data: str
    new_data: str
    rows: tuple[Row, ...]
    commit: str | None
    """Of the code that measured."""


def split_runs(runs: Sequence[Run]) -> tuple[Run, tuple[Run, ...]]:
    """The run of the old task, and the runs of the new one that all start from it.

    Raises:
        UsageError: the runs are no such experiment; says which one is not.
    """
    firsts = [run for run in runs if not run.start]
    if len(firsts) != 1:
        raise UsageError(
            f"forgetting wants a recipe in which one run (the old task) has no `start`; {len(firsts)} of {len(runs)} do"
        )
    first, others = firsts[0], tuple(run for run in runs if run.start)
    if not others:
        raise UsageError(f"forgetting wants runs of a new task that start from {first.artefact!r}; there are none")
    for run in others:
        if run.start != first.artefact:
            raise UsageError(f"forgetting: {run.artefact!r} starts from {run.start!r}, expected {first.artefact!r}")
        if run.data == first.data:
            raise UsageError(f"forgetting: {run.artefact!r} learns {run.data!r}, which is the old task; give another")
        if source_of(run) != source_of(others[0]):
            raise UsageError(
                f"forgetting: {run.artefact!r} and {others[0].artefact!r} learn from different data; give both the same"
            )
    return first, others


def forgetting(
    runs: Sequence[Run], output: Path, *, test: bool = False, resume: bool = True, force: bool = False
) -> Forgetting:
    """Train what is missing, then measure every network on both tasks.

    Args:
        runs: see :func:`split_runs`; the first of those that start from the old task is what `saved` compares with.
        output: the folder of artefacts.
        test: read the test splits, too: once, after everything was chosen on validation images.
        resume: continue an interrupted training.
        force: train even if the checkpoints are up to date.

    Raises:
        UsageError: the runs are no such experiment.
        ArtefactError: the network of the old task and one of the new are not alike.
    """
    first, others = split_runs(runs)
    for run in (first, *others):
        train(run, output, resume=resume, force=force, test=False)
    old, new = source_of(first).open(), source_of(others[0]).open()
    judge = _Judge()
    origin, card = load(output / first.artefact / CHECKPOINT)
    alike = old.labels == new.labels
    rows = [
        Row(
            run=first.artefact,
            old=judge.top1(origin, card.use.input, old, "validation"),
            new=judge.top1(origin, card.use.input, new, "validation") if alike else None,
            old_test=judge.top1(origin, card.use.input, old, "test") if test else None,
            new_test=judge.top1(origin, card.use.input, new, "test") if test and alike else None,
            forgotten=0.0,
            saved=None,
            moved=0.0,
            trainable=_trainable(card),
        )
    ]
    for run in others:
        rows.append(_after(run, output, origin, card, rows, judge, old=old, new=new, test=test))
    return Forgetting(old_data=old.name, new_data=new.name, rows=tuple(rows), commit=code_commit())


def write_forgetting(result: Forgetting, folder: Path, name: str) -> tuple[Path, Path]:
    """Write `name`.json (everything) and `name`.csv (a line per network) into a folder, atomically.

    Returns:
        Both paths.
    """
    document, table = folder / f"{name}.json", folder / f"{name}.csv"
    write_bytes(document, json.dumps(dataclasses.asdict(result), indent=2, sort_keys=True).encode())
    write_table(table, [_columns(row) for row in result.rows])
    return document, table


def _after(
    run: Run,
    output: Path,
    origin: nn.Module,
    card: Card,
    before: Sequence[Row],
    judge: _Judge,
    *,
    old: Dataset,
    new: Dataset,
    test: bool,
) -> Row:
    body, own = load(output / run.artefact / CHECKPOINT)
    check_labels(own, new)
    try:
        grafted = transplant_head(body, origin)
    except ArtefactError as error:
        raise ArtefactError(f"{run.artefact} and {run.start}: {error}") from error
    after = judge.top1(grafted, card.use.input, old, "validation")
    forgotten = before[0].old.top1 - after.top1
    reference = before[1].forgotten if len(before) > 1 else forgotten
    return Row(
        run=run.artefact,
        old=after,
        new=judge.top1(body, own.use.input, new, "validation"),
        old_test=judge.top1(grafted, card.use.input, old, "test") if test else None,
        new_test=judge.top1(body, own.use.input, new, "test") if test else None,
        forgotten=forgotten,
        saved=_saved(forgotten, reference),
        moved=_distance(grafted, origin),
        trainable=_trainable(own),
    )


def _saved(forgotten: float, reference: float) -> float | None:
    return 1 - forgotten / reference if reference > 0 else None


class _Judge:
    """Measures networks; decodes every image once."""

    def __init__(self) -> None:
        self._decoded: dict[tuple[str, str, Input], DecodedImages] = {}

    def top1(self, model: nn.Module, spec: Input, dataset: Dataset, split: str) -> Metrics:
        """The accuracy of `model` on a split of images that are preprocessed as `spec` says."""
        samples, key = dataset.splits[split], (dataset.digest, split, spec)
        if key not in self._decoded:
            self._decoded[key] = DecodedImages(samples, spec)
        logits = torch_logits(model, self._decoded[key])
        truth = np.array([sample.label for sample in samples], dtype=np.int64)
        return accuracy(logits, truth, dataset=dataset.name, split=split)


@torch.no_grad()
def _distance(model: nn.Module, origin: nn.Module) -> float:
    """|w - w0| / |w0| over the parameters outside of the classifier."""
    left_out = classifier_tensors(origin)
    start = {name: parameter.double() for name, parameter in origin.named_parameters() if name not in left_out}
    moved = sum(float((model.get_parameter(name).double() - w).square().sum()) for name, w in start.items())
    return float((moved / sum(float(w.square().sum()) for w in start.values())) ** 0.5)


def _trainable(card: Card) -> int | None:
    trained = [entry.summary.get("trainable") for entry in card.lineage if entry.stage == "train"]
    return trained[-1] if trained else None


def _columns(row: Row) -> dict[str, Any]:
    metrics = {
        f"{key}_{field}": getattr(found, field) if found else None
        for key in ("old", "new", "old_test", "new_test")
        for found in (getattr(row, key),)
        for field in ("top1", "n")
    }
    rest = {key: getattr(row, key) for key in ("forgotten", "saved", "moved", "trainable")}
    return {"run": row.run, **metrics, **rest}
