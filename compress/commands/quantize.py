"""Commands that export to ONNX and quantize."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from zoo.base.commandline import COMPRESS, Artefacts, AsJson, Force, app, console, short
from zoo.base.errors import UsageError
from zoo.base.files import CHECKPOINT, output_root
from zoo.base.names import PRUNED
from zoo.commands.runs import Data, MaybeRecipe, Model, Only, Settings, chosen_runs, named_source, report


@app.command(rich_help_panel=COMPRESS)
def export(
    artefacts: Artefacts = None,
    recipe: MaybeRecipe = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize each ONNX file as well, where that pays.")] = False,
    data: Data = None,
    model: Model = None,
    settings: Settings = None,
    only: Only = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Export checkpoints to ONNX, with proof of equal outputs.

    Writes model.onnx beside each.
    """
    from compress.chain import export_artefact, quantize_artefact
    from zoo.artefact.onnx_file import read_card
    from zoo.training.recipe import QuantizeConfig

    if artefacts and (recipe or model or settings or only):
        raise UsageError(
            "--recipe, --model, --set and --only say which artefacts of a recipe are meant; "
            "name artefacts, or use these, not both"
        )
    jobs = [(folder, QuantizeConfig()) for folder in artefacts or []]
    source = named_source(data) if artefacts else None
    if not artefacts and (recipe or data or model):
        for run in chosen_runs(recipe, data, model, None, settings, only, made=True, tell=False):
            names = (run.artefact, f"{run.artefact}{PRUNED}")
            jobs += [
                (output_root() / name, run.quantize) for name in names if (output_root() / name / CHECKPOINT).is_file()
            ]
    if not jobs:
        raise UsageError("name at least one artefact to export, or the --data or --recipe that one was trained with")
    for folder, config in jobs:
        path = export_artefact(folder, data=source, force=force)
        report([read_card(path)], [path], as_json)
        if int8:
            _tell(*quantize_artefact(path, config, data=source, force=force), as_json)


@app.command(rich_help_panel=COMPRESS)
def quantize(
    artefacts: Annotated[list[Path], typer.Argument(help="Folders with a model.onnx, like output/vit-lora, or files.")],
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="Folder to draw images from, in any layout, to calibrate without labels."),
    ] = None,
    method: Annotated[str, typer.Option(help="static, dynamic, fp16 or auto (static; on GPUs fp16).")] = "auto",
    calibration: Annotated[
        str, typer.Option(help="Activation ranges: minmax, or mse, which clips what is rare.")
    ] = "minmax",
    target: Annotated[
        str, typer.Option(help="Processor: portable, vnni, arm, cuda, tensorrt or auto (this machine's).")
    ] = "portable",
    images: Annotated[int, typer.Option(help="Calibration images at most.")] = 256,
    max_drop: Annotated[float, typer.Option("--max-drop", help="Budget in points of top-1 on validation data.")] = 0.5,
    keep: Annotated[str, typer.Option(help="better: write only what keeps the budget and is faster; any.")] = "better",
    bias_correction: Annotated[
        bool, typer.Option("--bias-correction/--no-bias-correction", help="Correct biases by what quantization adds.")
    ] = True,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="Print what each node costs.")] = False,
    data: Data = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Quantize ONNX files to INT8 or FP16, if that is better.

    Writes model.int8.onnx or model.fp16.onnx beside model.onnx.
    """
    from compress.chain import quantize_artefact
    from zoo.training.recipe import QuantizeConfig

    config = QuantizeConfig(
        method=method,
        images=images,
        calibration=calibration,
        target=target,
        bias_correction=bias_correction,
        max_drop=max_drop,
        keep=keep,
    )
    source = named_source(data)
    for artefact in artefacts:
        path, found = quantize_artefact(
            artefact, config, data=source, calibrate=calibrate, force=force, analyse=sensitivity
        )
        if sensitivity and not as_json:
            console().print(_costs(found) or f"no node was measured: the method is {found['measured']['method']}")
        _tell(path, found, as_json)


def _tell(path: Path, found: dict[str, Any], as_json: bool) -> None:
    """One line: the verdict on one artefact."""
    from compress.quantize.report import sentence
    from zoo.artefact.onnx_file import read_card

    if as_json:
        card = dataclasses.asdict(read_card(path)) if found["written"] else None
        print(json.dumps({"path": str(path), "card": card, "report": found}))
    else:
        print(f"{short(path.parent)}: {sentence(found, short(path))}")


def _costs(found: dict[str, Any]) -> Table | None:
    """What quantizing each node costs."""
    if not found["sensitivity"]:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("node", no_wrap=True)
    table.add_column("operator")
    for heading in ("added noise dB", "cost (nats of KL)", "stays in"):
        table.add_column(heading, justify="right")
    for row in found["sensitivity"]:
        noise = f"{10 * math.log10(row['noise']):.1f}" if row["noise"] > 0 else "none"
        cost = "not measured" if row["cost"] is None else f"{row['cost']:.5f}"
        table.add_row(row["node"], row["kind"], noise, cost, "float" if row["kept"] else "INT8")
    return table
