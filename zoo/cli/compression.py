"""Commands that make artefacts smaller and faster, and export them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.app import (
    Artefact,
    Artefacts,
    AsJson,
    Data,
    Force,
    MaybeRecipe,
    Model,
    Only,
    RecipeName,
    Resume,
    Settings,
    app,
    chosen_runs,
    named_source,
    notes_of,
    report,
)
from zoo.errors import UsageError
from zoo.files import CHECKPOINT, checkpoint_path, output_root


@app.command()
def compress(
    recipe: RecipeName = "quickstart",
    data: Data = None,
    model: Model = None,
    settings: Settings = None,
    only: Only = None,
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Prune, recalibrate and recover what a recipe trained: output/NAME-pruned/model.safetensors."""
    from compress.chain import compress_run
    from zoo.checkpoint import read_card

    chosen = [run for run in chosen_runs(recipe, data, model, None, settings, only) if run.role == "model"]
    if not chosen:
        raise UsageError("nothing to compress: the chosen runs are controls, which stay as they are")
    paths = [compress_run(run, output_root(), resume=resume, force=force) for run in chosen]
    report([read_card(path) for path in paths], paths, as_json)


@app.command()
def prune(
    artefact: Artefact,
    out: Annotated[Path, typer.Option("--out", help="Folder of the new artefact.")],
    macs: Annotated[float, typer.Option(help="Largest share of the multiply-accumulates that stays, in (0, 1).")] = 0.5,
    importance: Annotated[str, typer.Option(help="l1, l2 or random.")] = "l2",
    round_to: Annotated[int, typer.Option(help="Widths stay multiples of this many channels.")] = 8,
    data: Data = None,
    dry_run: Annotated[bool, typer.Option("--plan", help="Only print what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove channels, heads and hidden units from a checkpoint."""
    from compress.prune import plan
    from compress.prune import prune as stage
    from zoo.card import allow
    from zoo.checkpoint import load, read_card
    from zoo.recipe import PruneConfig
    from zoo.workspace import write_notes

    config = PruneConfig(macs=macs, importance=importance, round_to=round_to)
    source = checkpoint_path(artefact)
    if dry_run:
        network, card = load(source)
        done = plan(network, card.use.input, config)
    else:
        allow(read_card(source), "prune")
        if (out / CHECKPOINT).resolve() == source.resolve():
            raise UsageError(f"--out {out} is the artefact itself; name another folder")
        notes = notes_of(source, data)
        done = stage(source, out / CHECKPOINT, config, dataset=notes.data.open_for(read_card(source)), name=out.name)
        write_notes(out, notes)
    if as_json:
        print(json.dumps(dataclasses.asdict(done) | {"ratio": done.ratio}))
        return
    for step in done.steps:
        print(f"{step.layer}: {step.before} -> {step.after} {step.unit}s")
    print(
        f"{done.macs_before / 1e6:.2f} -> {done.macs_after / 1e6:.2f} million multiply-accumulates ({done.ratio:.0%})"
    )


@app.command()
def recalibrate(
    artefact: Artefact,
    images: Annotated[int, typer.Option(help="At most so many training images.")] = 1024,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Measure the BatchNorm statistics of a checkpoint anew, in its own folder."""
    from compress.recalibrate import recalibrate as stage
    from zoo.checkpoint import read_card
    from zoo.recipe import RecalibrateConfig

    source = checkpoint_path(artefact)
    done = stage(
        source,
        source,
        RecalibrateConfig(images=images),
        dataset=notes_of(source, data).data.open_for(read_card(source)),
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
        return
    print(
        f"{done.layers} layers, {done.images} images: validation top-1 {done.top1_before:.2%} -> {done.top1_after:.2%}"
    )


@app.command()
def recover(
    artefact: Artefact,
    teacher: Annotated[Path, typer.Option("--teacher", help="The unpruned artefact.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 3,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-3,
    data: Data = None,
    resume: Resume = True,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a pruned checkpoint with its unpruned parent as teacher, in its own folder."""
    from compress.recover import recover as stage
    from zoo.checkpoint import read_card
    from zoo.fit_config import FitConfig
    from zoo.recipe import RecoverConfig

    source = checkpoint_path(artefact)
    config = RecoverConfig(fit=FitConfig(epochs=epochs, lr=lr))
    dataset = notes_of(source, data).data.open_for(read_card(source))
    done = stage(source, checkpoint_path(teacher), source, config, dataset=dataset, resume=resume)
    if as_json:
        print(json.dumps(dataclasses.asdict(done)))
        return
    print(f"best validation top-1 {done.validation_top1:.2%} in epoch {done.best_epoch} of {done.epochs}")


@app.command()
def export(
    artefacts: Artefacts = None,
    recipe: MaybeRecipe = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize each ONNX file as well.")] = False,
    data: Data = None,
    model: Model = None,
    settings: Settings = None,
    only: Only = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Export checkpoints to model.onnx beside them, after proving that both compute the same."""
    from compress.chain import PRUNED, export_artefact, quantize_artefact
    from zoo.graph import read_card
    from zoo.recipe import QuantizeConfig

    jobs = [(folder, QuantizeConfig()) for folder in artefacts or []]
    source = named_source(data) if artefacts else None
    if recipe:
        for run in chosen_runs(recipe, data, model, None, settings, only):
            names = (run.artefact, run.artefact + PRUNED)
            jobs += [
                (output_root() / name, run.quantize) for name in names if (output_root() / name / CHECKPOINT).is_file()
            ]
    if not jobs:
        raise UsageError("name at least one artefact to export, or a --recipe whose artefacts were trained")
    paths = []
    for folder, config in jobs:
        paths.append(export_artefact(folder, data=source, force=force))
        if int8:
            paths.append(quantize_artefact(folder, config, data=source, force=force))
    report([read_card(path) for path in paths], paths, as_json)


@app.command()
def quantize(
    artefacts: Annotated[list[Path], typer.Argument(help="Folders with a model.onnx, like output/vit-lora.")],
    images: Annotated[int, typer.Option(help="Calibration images, from the training split.")] = 256,
    calibration: Annotated[str, typer.Option(help="minmax, entropy or percentile.")] = "minmax",
    data: Data = None,
    target: Annotated[
        str, typer.Option(help="Instruction set: portable, vnni, arm or auto (this machine's).")
    ] = "portable",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Quantize model.onnx to model.int8.onnx beside it."""
    from compress.chain import quantize_artefact
    from zoo.graph import read_card
    from zoo.recipe import QuantizeConfig

    config = QuantizeConfig(images=images, calibration=calibration, target=target)
    source = named_source(data)
    paths = [quantize_artefact(folder, config, data=source, force=force) for folder in artefacts]
    report([read_card(path) for path in paths], paths, as_json)
