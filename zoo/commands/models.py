"""Commands about architectures: their names, and what one of them is made of."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from zoo.base.commandline import PREPARE, AsJson, app, console
from zoo.base.size import SIZE_HELP, parse_size

__all__ = ["model", "models"]

_MOST_NAMES = 60
"""Names that are listed without being asked for all."""


@app.command(rich_help_panel=PREPARE)
def models(
    pattern: Annotated[
        str | None, typer.Argument(help="Part of a name, or a pattern with * and ?: resnet, vit_*_patch16_*.")
    ] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only those that have pretrained weights.")] = False,
    every: Annotated[bool, typer.Option("--all", help=f"Print all, not the first {_MOST_NAMES}.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the architectures that `--model` takes.

    Our own first, then those of timm.
    """
    from zoo.networks.registry import search

    found = search(pattern, pretrained=pretrained)
    if as_json:
        print(json.dumps(found))
        return
    shown = found if every else found[:_MOST_NAMES]
    print("\n".join(shown))
    if len(shown) < len(found):
        print(f"... {len(found)} in all; narrow them with a PATTERN, or print them with --all")


@app.command(rich_help_panel=PREPARE)
def model(
    name: Annotated[str, typer.Argument(help="Architecture: cnn5, or any name of `pocketzoo models`.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Argument of the architecture: img_size=32. Repeatable.")
    ] = None,
    size: Annotated[str | None, typer.Option(help=f"{SIZE_HELP}; default: what it is made for.")] = None,
    classes: Annotated[int, typer.Option(help="Number of labels.")] = 1000,
    colour: Annotated[str, typer.Option(help="RGB (3 channels) or L (1 channel).")] = "RGB",
    layers: Annotated[bool, typer.Option("--layers", help="List the layers that `layer` and probes can name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what an architecture costs and what its parts are called.

    It is built with random weights.
    """
    from zoo.networks.describe import describe

    found = describe(name, settings or (), size=parse_size(size) if size else None, classes=classes, colour=colour)
    if as_json:
        print(json.dumps(found if layers else {key: value for key, value in found.items() if key != "layers"}))
        return
    _print(found)
    if layers:
        print("\n".join(found["layers"]))


def _print(found: dict[str, Any]) -> None:
    from rich.table import Table

    height, width = found["size"]
    table = Table("", found["name"], show_lines=False)
    table.add_row("arguments", json.dumps(found["arguments"]) if found["arguments"] else "its own")
    table.add_row("input", f"{found['channels']} x {height} x {width} pixels (smallest edge: {found['smallest']})")
    table.add_row("parameters", f"{found['parameters']:,}")
    table.add_row("multiply-accumulates", f"{found['macs']:,} per image")
    table.add_row("classifier", f"{', '.join(found['classifier'])}: {found['features']} features")
    table.add_row("stages", ", ".join(found["stages"]))
    targets = ", ".join(f"{part} ({count})" for part, count in found["lora_targets"].items())
    table.add_row("LoRA targets", targets or "none: no linear layer but the classifier")
    table.add_row("layers", f"{len(found['layers'])} (--layers lists them)")
    console().print(table)
