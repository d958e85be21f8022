"""Training as a stage: data and first weights in, a checkpoint with its card out."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo.batches import Images, canvas
from zoo.card import Build, Card, Inform, Input, Lora, Stage, Use, advance
from zoo.checkpoint import load, read_card, save
from zoo.datasets.base import Dataset
from zoo.errors import ArtefactError, UsageError
from zoo.evaluate import accuracy, check_labels, torch_logits, with_validation
from zoo.files import CHECKPOINT, UNMERGED, code_commit, sha256_file
from zoo.fit import STATE, FitReport, fit, pick_device
from zoo.lora import add_lora, merge_lora
from zoo.models.registry import build, classifier, count_macs, input_for, zero_classifier
from zoo.models.weights import load_weights
from zoo.recipe import Run
from zoo.workspace import DataSource, Notes, card_if_readable, is_current, write_notes

__all__ = ["measured", "merge", "train"]


def train(run: Run, output: Path, *, resume: bool = True, force: bool = False) -> Path:
    """Train one network of a recipe into `output/<name>/model.safetensors`.

    With LoRA, `lora.safetensors` keeps the unmerged network, and the merged one is made from it by :func:`merge`.
    The test split is read once, after the best epoch was chosen on validation data.

    Args:
        run: what to train.
        output: the folder of artefacts; `run.start` is looked up there.
        resume: continue an interrupted run.
        force: train even if the checkpoint is up to date.

    Returns:
        The checkpoint's path.

    Raises:
        UsageError, DataError, ArtefactError, TrainingError: see the functions this is made of.
    """
    folder = output / run.artefact
    source = DataSource(name=run.data, seed=run.split_seed, per_split=run.images_per_split)
    dataset = source.open()
    # A relative path means something else in another working directory.
    source = dataclasses.replace(source, name=dataset.location or run.data)
    elsewhere = dataclasses.replace(source, name=run.test_on) if run.test_on else None
    test = dataclasses.replace(elsewhere, name=elsewhere.open().location or run.test_on) if elsewhere else source
    parent = output / run.start / CHECKPOINT if run.start else None
    digest = sha256_file(parent) if parent and parent.is_file() else None
    if parent and digest is None:
        raise ArtefactError(f"{run.artefact} starts from {run.start}, but there is no {parent}; train that first")
    config = _lineage_config(run, dataset)
    target = folder / (UNMERGED if run.lora else CHECKPOINT)
    card = card_if_readable(read_card, target)
    if force or not is_current(card, [("train", config)], digest):
        _train(run, dataset, parent, digest, config, target, resume=resume)
    write_notes(folder, Notes(role=run.role, data=source, test=test))
    return merge(target, folder / CHECKPOINT, dataset, force=force) if run.lora else target


def merge(source: Path, target: Path, dataset: Dataset | None = None, *, force: bool = False) -> Path:
    """Merge LoRA adapters into the weights they adapt: W + (alpha / rank) B A.

    Args:
        source: an unmerged checkpoint.
        target: the merged one.
        dataset: measures the merged network on its validation and test splits.
        force: merge even if the target is up to date.

    Raises:
        ArtefactError: the source has no adapters.
    """
    digest = sha256_file(source)
    if not force and is_current(card_if_readable(read_card, target), [("merge", {})], digest):
        return target
    begin = time.perf_counter()
    model, card = load(source)
    count = merge_lora(model) if card.build.lora else 0
    entry = Stage(
        stage="merge",
        config={},
        parent=digest,
        commit=code_commit(),
        summary={"adapters": count},
        seconds=round(time.perf_counter() - begin, 1),
    )
    card = advance(card, entry)
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, lora=None))
    save(model, measured(model, card, dataset, test=True) if dataset else card, target)
    return target


def measured(model: nn.Module, card: Card, dataset: Dataset, *, test: bool) -> Card:
    """The card with accuracy on validation (which also fits temperature and reference) and, if asked, then on test."""
    check_labels(card, dataset)
    device = pick_device()
    model.to(device)
    validation = torch_logits(model, Images(dataset.splits["validation"], card.use.input), device=device)
    card = with_validation(card, validation, dataset)
    if test:
        logits = torch_logits(model, Images(dataset.splits["test"], card.use.input), device=device)
        truth = np.array([sample.label for sample in dataset.splits["test"]], dtype=np.int64)
        final = accuracy(logits, truth, dataset=dataset.name, split="test")
        card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, metrics=(*card.inform.metrics, final)))
    model.to("cpu")
    return card


def _train(
    run: Run,
    dataset: Dataset,
    parent: Path | None,
    digest: str | None,
    config: dict[str, Any],
    target: Path,
    *,
    resume: bool,
) -> None:
    model, card = _starting_point(run, dataset, parent)
    if run.lora:
        torch.manual_seed(run.train.seed)
        lora = run.lora
        add_lora(model, targets=lora.targets, rank=lora.rank, alpha=lora.alpha, dropout=lora.dropout)
        build_with = dataclasses.replace(card.build, lora=Lora(targets=lora.targets, rank=lora.rank, alpha=lora.alpha))
        card = dataclasses.replace(card, build=build_with)
    spec = card.use.input
    report = fit(
        model,
        train=Images(dataset.splits["train"], canvas(spec)),
        validation=Images(dataset.splits["validation"], spec),
        spec=spec,
        config=run.train,
        folder=target.parent,
        resume=resume,
        title=run.artefact,
        identity=[config, digest],
    )
    entry = Stage(
        stage="train",
        config=config,
        parent=digest,
        seed=run.train.seed,
        commit=code_commit(),
        summary=_summary(model, report),
        seconds=report.seconds,
    )
    # A first training has no parent file, so it cannot `advance` a parent's card.
    lineage = (*card.lineage, entry)
    card = dataclasses.replace(card, name=run.artefact, lineage=lineage)
    save(model, measured(model, card, dataset, test=run.lora is None), target)
    (target.parent / STATE).unlink(missing_ok=True)


def _starting_point(run: Run, dataset: Dataset, parent: Path | None) -> tuple[nn.Module, Card]:
    """The network before training, with a card that has no measured facts yet."""
    if parent is not None:
        model, card = load(parent)
        if card.use.labels != dataset.labels:
            _reset_head(model, len(dataset.labels))
        use = dataclasses.replace(card.use, labels=dataset.labels, temperature=1.0, golden=None, reference=None)
        inform = dataclasses.replace(card.inform, metrics=(), macs=count_macs(model, use.input))
        return model, dataclasses.replace(card, use=use, inform=inform)
    spec = input_for(run.model, colour=dataset.colour, size=run.size, photographs=dataset.photographs)
    torch.manual_seed(run.train.seed)
    model = build(run.model, classes=len(dataset.labels), channels=spec.channels, arguments=run.arguments)
    source = load_weights(model, run.model, run.weights, arguments=run.arguments)
    macs = _macs(model, spec, run)
    card = Card(
        name=run.artefact,
        build=Build(architecture=run.model, arguments=dict(run.arguments)),
        use=Use(labels=dataset.labels, input=spec),
        inform=Inform(parameters=0, bytes=0, macs=macs, source=source.source, licence=source.licence),
    )
    return model, card


def _macs(model: nn.Module, spec: Input, run: Run) -> int:
    try:
        return count_macs(model, spec)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"{run.model} does not take {spec.size[1]} x {spec.size[0]} pixels: {error}; change `size`, "
            "or give a network of a fixed size its own (--set arguments.img_size=...)"
        ) from error


def _reset_head(model: nn.Module, classes: int) -> None:
    head = classifier(model)
    if not hasattr(model, "reset_classifier"):
        raise ArtefactError(f"{type(head).__name__}: this network cannot take a new set of labels")
    model.reset_classifier(classes)  # type: ignore[operator]
    zero_classifier(model)


def _summary(model: nn.Module, report: FitReport) -> dict[str, Any]:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return dataclasses.asdict(report) | {"trainable": trainable}


def _lineage_config(run: Run, dataset: Dataset) -> dict[str, Any]:
    return {
        "data": dataset.describe(),
        "fit": dataclasses.asdict(run.train),
        "lora": dataclasses.asdict(run.lora) if run.lora else None,
        # The network of a `start` is what its own card says.
        "model": run.model,
        "arguments": dict(run.arguments),
        "size": None if run.start else run.size,
        "weights": sha256_file(Path(run.weights)) if Path(run.weights).is_file() else run.weights,
    }
