"""Training as a stage: data and first weights in, a checkpoint with its card out."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from zoo.artefact.card import Build, Card, Inform, Input, LineageEntry, Lora, Use, advance
from zoo.artefact.environment import environment
from zoo.base.errors import ArtefactError, DataError, UsageError
from zoo.base.files import CHECKPOINT, UNMERGED, code_commit, sha256_file
from zoo.base.progress import note
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages, canvas
from zoo.data.depth import measured_range
from zoo.data.folders.unused import write_unused
from zoo.networks.checkpoint import load, read_card, save
from zoo.networks.heads import add_head, reorder_head, reset_head
from zoo.networks.lora import add_lora, merge_lora
from zoo.networks.registry import build, count_macs, input_for, normalised
from zoo.networks.sizes import check_size
from zoo.networks.stages import is_batch_norm
from zoo.networks.weights.first_weights import load_weights, weights_digest
from zoo.training.budget import PLAN, Plan, identity_of, read_plan, settle, write_plan
from zoo.training.evaluate import Logits, accuracy, check_labels, shared_logits, with_validation
from zoo.training.loop.distributed import barrier, check_shared, first_decides, join_world
from zoo.training.loop.fit import EpochResult, FitConfig, FitReport, fit, measure_pace
from zoo.training.loop.state import STATE
from zoo.training.recipe import Run
from zoo.training.workspace import DataSource, Notes, card_if_readable, has_notes, is_current, write_notes

__all__ = ["Trained", "add_test", "measured", "merge", "parent_of", "source_of", "starting_point", "train"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a training has at hand when it has ended."""

    folder: Path
    card: Card
    config: FitConfig
    train: DecodedImages = field(repr=False)
    """The training images, of the canvas size."""
    dataset: Dataset = field(repr=False)
    answers: Logits = field(repr=False)
    """float32 [N, K], to the validation split."""


def train(
    run: Run,
    output: Path,
    *,
    resume: bool = True,
    force: bool = False,
    test: bool | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    logs: Sequence[str] = (),
    on_trained: Callable[[Trained], None] | None = None,
) -> Path:
    """Train one network of a recipe into `output/<name>/model.safetensors`.

    With LoRA, `lora.safetensors` keeps the unmerged network, and the merged one is made from it by :func:`merge`.
    The test split is read once, after the best epoch was chosen on validation data.

    Args:
        run: what to train.
        output: the folder of artefacts; `run.start` is looked up there.
        resume: continue an interrupted run.
        force: train even if the checkpoint is up to date.
        test: read the test split at the end; default: what the run says.
        on_epoch: called after each validation; may raise zoo.training.loop.trainer.Stopped to end with the best epoch.
        logs: see zoo.training.loop.logs.LOGS.
        on_trained: called once the checkpoint is written, in the first process, unless it was up to date or a refit,
            which has no answers to validation images.

    Returns:
        The checkpoint's path.

    Raises:
        UsageError, DataError, ArtefactError, TrainingError: see the functions this is made of.
    """
    begun = time.perf_counter()
    world = join_world()
    test = run.test if test is None else test
    folder = output / run.artefact
    check_shared(folder, world)
    source = source_of(run)
    dataset = source.open()
    if run.unlabelled and not dataset.unlabelled:
        raise UsageError(
            f"{run.artefact}: labels = {run.labels:g} leaves none of the {len(dataset.splits['train'])} training "
            f"images of {dataset.name} without a label, so [unlabelled] has nothing to learn from; set labels lower"
        )
    run = dataclasses.replace(run, train=run.train.for_images(len(dataset.splits["train"])))
    if world.first:
        write_unused(dataset.unused, folder / "unused.csv")
    # A relative path means something else in another working directory.
    source = dataclasses.replace(source, name=dataset.location or run.data)
    notes = Notes(role=run.role, data=source, test=_test_source(run) if run.test_on else source)
    parent = parent_of(run, output)
    digest = sha256_file(parent) if parent else None
    target = folder / (UNMERGED if run.lora else CHECKPOINT)

    stale, settled = first_decides(lambda: _look(run, dataset, digest, target, resume=resume, force=force), world)
    if stale:
        _train(
            run,
            dataset,
            parent,
            target,
            notes,
            resume=resume,
            test=test,
            on_epoch=on_epoch,
            logs=logs,
            on_trained=on_trained,
            begun=begun,
            settled=settled,
        )
    elif test and not run.lora:
        add_test(target, lambda: dataset)
    if world.first:
        write_notes(folder, notes)
    if run.lora:
        merge(target, folder / CHECKPOINT, dataset, force=force, test=test)
    barrier(world)
    return folder / CHECKPOINT


def parent_of(run: Run, output: Path) -> Path | None:
    """The checkpoint of `run.start` in the folder of artefacts; None for a run without.

    Raises:
        ArtefactError: it is not there.
    """
    path = output / run.start / CHECKPOINT
    if run.start and not path.is_file():
        raise ArtefactError(f"{run.artefact} starts from {run.start}, but there is no {path}; train that first")
    return path if run.start else None


def source_of(run: Run) -> DataSource:
    """How to open the data of a run."""
    return DataSource(
        name=run.data,
        seed=run.split_seed,
        per_split=run.images_per_split,
        thin=run.thin,
        labels=run.labels,
        reading=run.reading,
        joined=run.refit is not None,
    )


def _test_source(run: Run) -> DataSource:
    source = DataSource(name=run.test_on, seed=run.split_seed, per_split=run.images_per_split)
    return dataclasses.replace(source, name=source.open().location or run.test_on)


def merge(
    source: Path, target: Path, dataset: Dataset | None = None, *, force: bool = False, test: bool = True
) -> Path:
    """Merge LoRA adapters into the weights they adapt: W + (alpha / rank) B A.

    Args:
        source: an unmerged checkpoint.
        target: the merged one.
        dataset: measures the merged network on its validation and test splits.
        force: merge even if the target is up to date.
        test: read the test split.

    Raises:
        ArtefactError: the source has no adapters.
    """
    world = join_world()
    barrier(world)  # the first process has written the source
    digest = sha256_file(source)
    # One answer for all: they measure together.
    done = first_decides(lambda: is_current(card_if_readable(read_card, target), [("merge", {})], digest), world)
    if done and not force:
        if test and dataset:
            add_test(target, lambda: dataset)
        return target
    begin = time.perf_counter()
    model, card = load(source)
    count = merge_lora(model) if card.build.lora else 0
    entry = LineageEntry(
        stage="merge",
        config={},
        parent=digest,
        commit=code_commit(),
        summary={"adapters": count},
        seconds=round(time.perf_counter() - begin, 1),
    )
    card = advance(card, entry)
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, lora=None))
    card = measured(model, card, dataset, test=test) if dataset else card
    if world.first:
        save(model, card, target)
    return target


def add_test(path: Path, dataset: Callable[[], Dataset]) -> None:
    """Measure a checkpoint on the test split and write it again, if its card has no such metric yet.

    Args:
        path: a checkpoint without adapters; its lineage stays, its digest changes.
        dataset: opens what it was trained on.
    """
    world = join_world()
    if first_decides(lambda: read_card(path).metrics("test") is None, world):
        model, card = load(path)
        card = measured(model, card, dataset(), test=True)
        if world.first:
            save(model, card, path)


def measured(model: nn.Module, card: Card, dataset: Dataset, *, test: bool, answers: Logits | None = None) -> Card:
    """The card with accuracy on validation (which also fits temperature and reference) and, if asked, then on test.

    A data set whose validation images are training images (a refit's) has none to measure on.

    Processes that train together call this together: each measures its share.

    Args:
        model: in evaluation mode.
        card: the network's.
        dataset: to measure on.
        test: read the test split.
        answers: float32 [N, K], the network's to the validation split, where they are known.
    """
    check_labels(card, dataset)
    if "validation" in dataset.splits:
        if answers is None:
            answers = shared_logits(model, dataset.splits["validation"], card.use.input)
        card = with_validation(card, answers, dataset, engine="torch")
    if test:
        logits = shared_logits(model, dataset.splits["test"], card.use.input)
        truth = np.array([sample.label for sample in dataset.splits["test"]], dtype=np.int64)
        final = accuracy(logits, truth, dataset=dataset.name, split="test", engine="torch")
        card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, metrics=(*card.inform.metrics, final)))
    return card


def _look(
    run: Run, dataset: Dataset, digest: str | None, target: Path, *, resume: bool, force: bool
) -> tuple[bool, Plan | None]:
    """Whether a run is to be trained, and how long it was to take if that was settled by an earlier session."""
    card = None if force else card_if_readable(read_card, target)
    made = run
    if run.minutes is not None and card is not None and card.lineage:
        # The number of epochs is a result, not a setting.
        made = _for_epochs(run, card.lineage[-1].config.get("fit", {}).get("epochs", run.train.epochs))
    if is_current(card, [("train", _lineage_config(made, dataset))], digest):
        return False, None
    if run.minutes is None or force or not resume:
        return True, None
    return True, read_plan(target.parent, identity_of(_lineage_config(run, dataset), digest))


def _for_epochs(run: Run, epochs: int) -> Run:
    return dataclasses.replace(run, train=dataclasses.replace(run.train, epochs=epochs))


def _train(
    run: Run,
    dataset: Dataset,
    parent: Path | None,
    target: Path,
    notes: Notes,
    *,
    resume: bool,
    test: bool,
    on_epoch: Callable[[EpochResult], None] | None,
    logs: Sequence[str],
    on_trained: Callable[[Trained], None] | None,
    begun: float,
    settled: Plan | None,
) -> None:
    model, card = starting_point(run, dataset, parent)
    world, spec, digest = join_world(), card.use.input, sha256_file(parent) if parent else None
    undecoded = time.perf_counter()
    train_images = DecodedImages(dataset.splits["train"], canvas(spec))
    validation = DecodedImages(dataset.splits.get("validation", ()), spec)
    unlabelled = DecodedImages(dataset.unlabelled, canvas(spec)) if run.unlabelled else None
    if world.first and not has_notes(target.parent):
        # From now on the folder is known to belong to this data.
        write_notes(target.parent, notes)
    if run.minutes is not None:
        if settled is None:
            decoding = time.perf_counter() - undecoded
            pace = measure_pace(
                model,
                train=train_images,
                validation=validation,
                spec=spec,
                config=run.train,
                folder=target.parent,
                unlabelled=unlabelled,
                semi=run.unlabelled,
                mask=run.mask,
            )
            identity = identity_of(_lineage_config(run, dataset), digest)
            settled = settle(run, dataset, pace, identity=identity, begun=begun, decoding=decoding, test=test)
            if world.first:
                write_plan(target.parent, settled)
        run = _for_epochs(run, settled.epochs)
    config = _lineage_config(run, dataset)
    report = fit(
        model,
        train=train_images,
        validation=validation,
        spec=spec,
        config=run.train,
        folder=target.parent,
        resume=resume,
        title=run.artefact,
        identity=[config, digest],
        unlabelled=unlabelled,
        semi=run.unlabelled,
        mask=run.mask,
        on_epoch=on_epoch,
        logs=logs,
    )
    entry = LineageEntry(
        stage="train",
        config=config,
        parent=digest,
        seed=run.train.seed,
        commit=code_commit(),
        summary={
            **_numbers(report),
            **(settled.summary() if settled else {}),
            "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else world.device.type,
            "ended": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "environment": environment("torch", "timm"),
        },
        seconds=report.seconds,
    )
    # A first training has no parent file, so it cannot `advance` a parent's card.
    lineage = (*card.lineage, entry)
    card = dataclasses.replace(card, name=run.artefact, lineage=lineage)
    answers = None
    if run.refit is not None:
        card = dataclasses.replace(card, use=dataclasses.replace(card.use, temperature=run.refit.temperature))
    else:
        answers = shared_logits(model, dataset.splits["validation"], card.use.input)
    card = measured(model, card, dataset, test=test and run.lora is None, answers=answers)
    if not world.first:
        return
    save(model, card, target)
    if on_trained is not None and answers is not None:
        folder = target.parent
        on_trained(
            Trained(folder=folder, card=card, config=run.train, train=train_images, dataset=dataset, answers=answers)
        )
    for name in (STATE, PLAN):
        (target.parent / name).unlink(missing_ok=True)


def _numbers(report: FitReport) -> dict[str, Any]:
    """A report for a card, which holds no NaN."""
    return {key: value for key, value in dataclasses.asdict(report).items() if value == value}


def starting_point(run: Run, dataset: Dataset, parent: Path | None) -> tuple[nn.Module, Card]:
    """The network of a run before training, with a card that has no measured facts yet.

    Args:
        run: its model and weights, head and LoRA.
        dataset: its labels and colours.
        parent: the checkpoint of `run.start`.
    """
    model, card = _adapted(run, dataset, parent) if parent is not None else _built(run, dataset)
    torch.manual_seed(run.train.seed)
    if run.head is not None:
        add_head(model, run.head, len(dataset.labels))
        card = dataclasses.replace(card, build=dataclasses.replace(card.build, head=run.head))
    check_size(model, card.build.architecture, card.use.input)
    # Before the adapters join: what they cost is gone once they are merged.
    macs = count_macs(model, card.use.input)
    card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, macs=macs, metrics=()))
    if run.lora is not None:
        lora = Lora(targets=run.lora.targets, rank=run.lora.rank, alpha=run.lora.alpha, rslora=run.lora.rslora)
        add_lora(
            model,
            targets=lora.targets,
            rank=lora.rank,
            alpha=lora.alpha,
            rslora=lora.rslora,
            dropout=run.lora.dropout,
        )
        card = dataclasses.replace(card, build=dataclasses.replace(card.build, lora=lora))
    return model, card


def _adapted(run: Run, dataset: Dataset, parent: Path) -> tuple[nn.Module, Card]:
    model, card = load(parent)
    _check_held_out(card, dataset)
    if set(card.use.labels) == set(dataset.labels):
        reorder_head(model, [card.use.labels.index(label) for label in dataset.labels])
    else:
        reset_head(model, len(dataset.labels))
    spec = _with_range(card.use.input, run, dataset)
    use = dataclasses.replace(card.use, labels=dataset.labels, input=spec, temperature=1.0, golden=None, reference=None)
    return model, dataclasses.replace(card, use=use)


def _check_held_out(card: Card, dataset: Dataset) -> None:
    """Check that a parent trained on this data set held out the same images.

    Raises:
        DataError: it did not, so that it may have been trained on what its child is tested on.
    """
    trained = [entry.config["data"] for entry in card.lineage if "data" in entry.config]
    known = [data.get("held_out") for data in trained if data["name"] == dataset.name]
    if known and known[-1] not in (None, dataset.joined_from or dataset.held_out):
        raise DataError(
            f"{card.name} was trained on {dataset.name} with other images held out, so it may know some that this run "
            "is validated or tested on; give both runs the same split_seed and images_per_split, or train "
            f"{card.name} again if the data set has changed"
        )


def _built(run: Run, dataset: Dataset) -> tuple[nn.Module, Card]:
    spec = input_for(
        run.model,
        colour=dataset.colour,
        size=run.size,
        photographs=dataset.photographs,
        arguments=run.arguments,
        pretrained=run.weights != "none",
    )
    spec = _with_range(spec, run, dataset)
    torch.manual_seed(run.train.seed)
    model = build(run.model, classes=len(dataset.labels), channels=spec.channels, arguments=run.arguments)
    if run.weights == "none" and run.train.freeze.norm == "freeze" and any(map(is_batch_norm, model.modules())):
        note(
            f"{run.artefact}: train.freeze.norm = 'freeze' keeps the statistics of BatchNorm as pretrained, but the "
            "weights are random (--weights none); --set train.freeze.norm=update learns them"
        )
    source = load_weights(model, run.model, run.weights, arguments=run.arguments, labels=dataset.labels)
    if source.normalisation is not None:
        spec = normalised(spec, *source.normalisation)
    return model, Card(
        name=run.artefact,
        build=Build(architecture=run.model, arguments=dict(run.arguments)),
        use=Use(labels=dataset.labels, input=spec),
        inform=Inform(parameters=0, bytes=0, macs=0, source=source.source, licence=source.licence),
    )


def _with_range(spec: Input, run: Run, dataset: Dataset) -> Input:
    """The input with what is white in the images: what the run says, or its parent's card, else what is measured."""
    if run.reading.range is not None or spec.range is not None:
        return dataclasses.replace(spec, range=spec.range if run.reading.range is None else run.reading.range)
    white, sentence = measured_range(dataset.splits["train"])
    if sentence:
        note(f"{dataset.name}: {sentence}")
    return dataclasses.replace(spec, range=white)


def _lineage_config(run: Run, dataset: Dataset) -> dict[str, Any]:
    white = run.reading.range
    if white is None and not run.start:
        white, _ = measured_range(dataset.splits["train"])
    # Named only where there is one, so that what was trained before stays up to date.
    return ({} if white is None else {"range": white}) | {
        "data": dataset.describe() | ({"thin": dataclasses.asdict(run.thin)} if run.thin else {}),
        "labels": run.labels,
        **({"minutes": run.minutes} if run.minutes is not None else {}),
        **({"refit": dataclasses.asdict(run.refit)} if run.refit is not None else {}),
        "fit": dataclasses.asdict(run.train),
        "head": dataclasses.asdict(run.head) if run.head else None,
        "lora": dataclasses.asdict(run.lora) if run.lora else None,
        "mask": dataclasses.asdict(run.mask) if run.mask else None,
        "unlabelled": dataclasses.asdict(run.unlabelled) if run.unlabelled else None,
        # The network of a `start` is what its own card says.
        "model": run.model,
        "arguments": dict(run.arguments),
        "size": None if run.start else run.size,
        "weights": weights_digest(run.weights),
    }
