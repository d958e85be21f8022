"""Commands that prune a checkpoint and heal what that did to it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.base.commandline import COMPRESS, Artefact, AsJson, Force, Resume, app, console
from zoo.base.errors import UsageError
from zoo.base.files import CHECKPOINT, checkpoint_path, code_commit, output_root, sha256_file, write_bytes
from zoo.base.progress import note
from zoo.commands.runs import Data, Logs, named_source, notes_of
from zoo.commands.training import BEFORE_TRAINING

if TYPE_CHECKING:
    from compress.prune.stage import Plan
    from zoo.artefact.card import Card
    from zoo.data.dataset import Dataset
    from zoo.training.recipe import RecalibrateConfig, RecoverConfig

__all__ = ["why_not_prunable"]

_DECIDING = ("pocketzoo", "timm", "torch", "torch-pruning")
"""Packages on whose versions it depends whether a network can be pruned."""


@app.command(rich_help_panel=COMPRESS)
def prune(
    artefact: Artefact,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the new artefact; with --plan, none.")] = None,
    macs: Annotated[
        float | None,
        typer.Option(help="Goal: largest share of the multiply-accumulates that stays, in (0, 1). Default: 0.5."),
    ] = None,
    params: Annotated[
        float | None, typer.Option(help="Goal instead: largest share of the parameters that stays, in (0, 1).")
    ] = None,
    latency_ms: Annotated[
        float | None,
        typer.Option(help="Goal instead: longest median time of one image in ONNX Runtime here, in milliseconds."),
    ] = None,
    importance: Annotated[
        str,
        typer.Option(help="What goes first by: l1, l2, fpgm, taylor, bn, random; auto: taylor if images have labels."),
    ] = "auto",
    scope: Annotated[
        str,
        typer.Option(help="layer: the same share of every group; global: the least of all groups (auto with taylor)."),
    ] = "auto",
    most: Annotated[float, typer.Option(help="Largest share of a group that goes, with --scope global.")] = 0.9,
    steps: Annotated[int, typer.Option(help="Prune in so many steps, scoring anew before each.")] = 1,
    round_to: Annotated[int, typer.Option(help="Widths stay multiples of this many channels.")] = 8,
    depth: Annotated[
        str,
        typer.Option(help="auto: whole residual blocks go, too, where the loss is smaller so (with taylor); none."),
    ] = "none",
    embedding: Annotated[
        bool, typer.Option("--embedding", help="Prune the width of a transformer's embedding, too.")
    ] = False,
    head_dims: Annotated[
        bool, typer.Option("--head-dims", help="Prune the dimension of a transformer's heads, too.")
    ] = False,
    images: Annotated[int, typer.Option(help="Training images that --importance taylor reads.")] = 256,
    seed: Annotated[int, typer.Option(help="Of --importance random, and of the choice of images.")] = 0,
    data: Data = None,
    dry_run: Annotated[bool, typer.Option("--plan", help="Only print what would go; nothing is written.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove channels, heads and hidden units of a checkpoint."""
    from compress.prune.stage import plan, scoring_images
    from compress.prune.stage import prune as stage
    from zoo.artefact.card import allow
    from zoo.networks.checkpoint import load, read_card
    from zoo.training.recipe import PruneConfig
    from zoo.training.workspace import without_data, write_notes

    config = PruneConfig(
        macs=macs,
        params=params,
        latency_ms=latency_ms,
        importance=importance,
        scope=scope,
        most=most,
        steps=steps,
        round_to=round_to,
        depth=depth,
        embedding=embedding,
        head_dims=head_dims,
        images=images,
        seed=seed,
    )
    source = checkpoint_path(artefact)
    card = read_card(source)
    allow(card, "prune")
    if dry_run:
        unread = without_data(source.parent, card, named_source(data)) or config.importance not in ("auto", "taylor")
        dataset = None if unread else notes_of(source, data).data.open_for(card)
        done = plan(load(source)[0], card.use.input, config, images=scoring_images(dataset, card.use.input, config))
    else:
        if out is None:
            raise UsageError("--out FOLDER is missing: name the new artefact's folder, or add --plan to only look")
        if (out / CHECKPOINT).resolve() == source.resolve():
            raise UsageError(f"--out {out} is the artefact itself; name another folder")
        _check_free(out, source)
        notes = None if without_data(source.parent, card, named_source(data)) else notes_of(source, data)
        dataset = notes.data.open_for(card) if notes else None
        done = stage(source, out / CHECKPOINT, config, dataset=dataset, name=out.name)
        if notes:
            write_notes(out, notes)
    if as_json:
        print(json.dumps(dataclasses.asdict(done) | {"ratio": done.ratio}))
    else:
        _show(done)


def _check_free(out: Path, source: Path) -> None:
    """Only what was pruned from the very same checkpoint is written over."""
    from zoo.networks.checkpoint import read_card
    from zoo.training.workspace import card_if_readable, is_current, occupied

    target = out / CHECKPOINT
    card = card_if_readable(read_card, target)
    if target.exists() and not is_current(card, [("prune", None)], sha256_file(source)):
        raise occupied(out, card, CHECKPOINT)


def _show(done: Plan) -> None:
    """What goes, group by group, and the totals."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("what goes")
    for heading in ("before", "after", "MACs saved %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for step in done.steps:
        table.add_row(step.layer, f"{step.unit}s", str(step.before), str(step.after), f"{step.macs * 100:.1f}")
    totals = Table(box=None, pad_edge=False, header_style="bold")
    totals.add_column(f"{done.importance}, {done.scope}")
    for heading in ("before", "after", "stays %"):
        totals.add_column(heading, justify="right", no_wrap=True)
    for name, before, after in (
        ("million multiply-accumulates", done.macs_before, done.macs_after),
        ("million parameters", done.parameters_before, done.parameters_after),
        ("MB", done.bytes_before, done.bytes_after),
    ):
        totals.add_row(name, f"{before / 1e6:.2f}", f"{after / 1e6:.2f}", f"{after / before * 100:.1f}")
    console().print(table)
    console().print()
    console().print(totals)
    for reason, count in Counter(kept.reason for kept in done.kept).items():
        first = next(kept.layer for kept in done.kept if kept.reason == reason)
        more = f" and {count - 1} other layers" if count > 1 else ""
        print(f"{first}{more}: kept whole, as {reason}")
    if done.latency_ms is not None:
        print(f"{done.latency_ms:.2f} ms per image in ONNX Runtime on this machine")


@app.command(rich_help_panel=COMPRESS)
def recalibrate(
    artefact: Artefact,
    images: Annotated[int, typer.Option(help="At most so many training images.")] = 1024,
    batch_size: Annotated[int, typer.Option(help="Images per batch; every batch counts the same.")] = 64,
    data: Data = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure the BatchNorm statistics of a checkpoint anew.

    The checkpoint is replaced.
    """
    from compress.recalibrate import Recalibration
    from compress.recalibrate import recalibrate as stage
    from zoo.base.documents import to_dataclass
    from zoo.networks.checkpoint import read_card
    from zoo.training.recipe import RecalibrateConfig

    source = checkpoint_path(artefact)
    card, config = read_card(source), RecalibrateConfig(images=images, batch_size=batch_size)
    dataset = notes_of(source, data).data.open_for(card)
    if not force and _is_done(source, card, "recalibrate", config, dataset):
        done = to_dataclass(Recalibration, dict(card.lineage[-1].summary), str(source))
    else:
        done = stage(source, source, config, dataset=dataset)
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
        return
    print(
        f"{done.layers} layers, {done.images} images: validation top-1 {done.top1_before:.2%} -> {done.top1_after:.2%}"
    )


@app.command(rich_help_panel=COMPRESS)
def recover(
    artefact: Artefact,
    teacher: Annotated[Path, typer.Option("--teacher", help="The unpruned artefact.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    distill: Annotated[float, typer.Option(help="Weight of the teacher's answers against the labels, 0 to 1.")] = 0.7,
    temperature: Annotated[float, typer.Option(help="Both answers are softened by it.")] = 2.0,
    test: Annotated[
        bool,
        typer.Option(
            "--test/--no-test",
            help="Measure the result on the test split, which is read once, at the end: not while settings are tried.",
        ),
    ] = False,
    data: Data = None,
    log: Logs = None,
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a pruned checkpoint, taught by its parent.

    The checkpoint is replaced.
    """
    from compress.recover import recover as stage
    from zoo.base.documents import to_dataclass
    from zoo.networks.checkpoint import read_card
    from zoo.training.loop.config import FitConfig
    from zoo.training.loop.fit import FitReport
    from zoo.training.loop.logs import check_logs
    from zoo.training.recipe import RecoverConfig
    from zoo.training.stage import add_test

    check_logs(log or ())
    source, taught = checkpoint_path(artefact), checkpoint_path(teacher)
    if taught.resolve() == source.resolve():
        raise UsageError(
            f"--teacher {teacher} is the artefact itself, which can teach itself nothing; name the one "
            "it was pruned from"
        )
    config = RecoverConfig(fit=FitConfig(epochs=epochs, lr=lr), distill=distill, temperature=temperature)
    card = read_card(source)
    dataset = notes_of(source, data).data.open_for(card)
    if not force and _is_done(source, card, "recover", config, dataset, teacher=sha256_file(taught)):
        summary = {key: value for key, value in card.lineage[-1].summary.items() if key != "teacher"}
        done = to_dataclass(FitReport, summary, str(source))
        if test:
            add_test(source, lambda: dataset)
    else:
        done = stage(source, taught, source, config, dataset=dataset, resume=resume, test=test, logs=log or ())
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
        return
    print(f"best validation top-1 {done.validation_top1:.2%} in epoch {done.best_epoch} of {done.epochs}")


def _is_done(
    source: Path, card: Card, stage: str, config: RecalibrateConfig | RecoverConfig, dataset: Dataset, **summary: str
) -> bool:
    """Whether the last thing that was done to an artefact is this, with the same settings and data; says so.

    Both stages write in place, so that the file they read is gone and cannot be compared.
    """
    from zoo.training.workspace import is_current

    metrics, last = card.metrics("validation"), card.lineage[-1:]
    done = (
        is_current(last, [(stage, dataclasses.asdict(config))], last[0].parent if last else None)
        and all(last[0].summary[key] == value for key, value in summary.items())
        and metrics is not None
        and metrics.dataset == dataset.name
    )
    if done:
        note(f"{source.parent.name} is up to date; --force does it anew")
    return done


def why_not_prunable(run: Any) -> str | None:
    """Why `pocketzoo compress` would refuse what a run with a `model` trains; None where it would not.

    Following a network takes as long as its first training steps, so the answer is remembered beside the artefacts.
    """
    commit = code_commit() or ""
    key = json.dumps([run.model, dict(run.arguments), run.size, commit, *map(version, _DECIDING)], default=str)
    memory = output_root() / ".index" / f"prunable-{hashlib.sha256(key.encode()).hexdigest()[:16]}.txt"
    if memory.is_file():
        return memory.read_text(encoding="utf-8") or None
    reason = _refusal(run)
    if not commit.endswith("-dirty"):
        write_bytes(memory, reason.encode())
    return reason or None


def _refusal(run: Any) -> str:
    import torch

    from compress.prune.stage import prunable
    from zoo.base.errors import ArtefactError
    from zoo.networks.registry import build, input_for

    spec = input_for(run.model, colour="RGB", size=run.size, photographs=True, arguments=run.arguments)
    network = build(run.model, classes=2, channels=spec.channels, arguments=run.arguments)
    threads = torch.get_num_threads()
    # Many small convolutions: on a busy machine, threads that wait for each other make them ten times as slow.
    torch.set_num_threads(1)
    try:
        prunable(network, spec)
    except ArtefactError as error:
        return str(error)
    finally:
        torch.set_num_threads(threads)
    return ""


def _tell_if_not_prunable(run: Any) -> None:
    """Say before hours of training what `pocketzoo compress` would refuse after them."""
    if reason := why_not_prunable(run):
        note(f"{run.artefact} can be trained and exported, but not pruned: {reason}")


BEFORE_TRAINING.append(_tell_if_not_prunable)
