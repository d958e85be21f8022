"""Commands for adapters in files of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.base.commandline import TRAIN, Artefact, AsJson, Force, app, console
from zoo.commands.runs import Data, named_source, report

adapter = typer.Typer(help="LoRA adapters in files of kilobytes, apart from the network.", no_args_is_help=True)
app.add_typer(adapter, name="adapter", rich_help_panel=TRAIN)


@adapter.command()
def extract(
    artefact: Artefact,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: adapter.safetensors in the artefact's folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the adapters and the classifier of lora.safetensors into a file of their own."""
    from rich.table import Table

    from zoo.training.adapters import extract_adapter, read_adapter

    path = extract_adapter(artefact, out)
    said, card, tensors = read_adapter(path)
    size, whole = path.stat().st_size, card.inform.bytes
    if as_json:
        print(json.dumps({"path": str(path), "bytes": size, "tensors": len(tensors), "backbone": said.backbone}))
        return
    table = Table("adapter", "tensors", "kB", "of the network", "belongs to weights")
    table.add_row(str(path), str(len(tensors)), f"{size / 1e3:.1f}", f"{size / whole:.1%}", said.backbone[:12])
    console().print(table)


@adapter.command()
def apply(
    file: Annotated[Path, typer.Argument(help="File that `adapter extract` wrote.")],
    base: Annotated[Path, typer.Option("--base", help="Folder or file of the artefact it was trained beside.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for lora.safetensors and the merged model.safetensors.")],
    data: Data = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Make the adapted network from its base again: exactly what training wrote. With --data it is measured, too."""
    from zoo.networks.checkpoint import read_card
    from zoo.training.adapters import apply_adapter
    from zoo.training.workspace import Notes, write_notes

    source = named_source(data)
    path = apply_adapter(base, file, out, dataset=source.open() if source else None, force=force)
    if source:
        write_notes(out, Notes(role="model", data=source, test=source))
    report([read_card(path)], [path], as_json)
