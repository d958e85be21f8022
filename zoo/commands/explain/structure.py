"""Commands that say what a network consists of: its layers in numbers, and its graph as a file for a viewer."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.base.commandline import AsJson, console, short
from zoo.base.errors import UsageError, unknown_name
from zoo.base.files import CHECKPOINT, checkpoint_path, graph_paths
from zoo.base.size import SIZE_HELP, parse_size
from zoo.commands.explain.group import explain, picture_path, say

if TYPE_CHECKING:
    from torch import nn

    from zoo.artefact.card import Card, Input
    from zoo.explain.structure.graph_summary import GraphSummary
    from zoo.explain.structure.summary import Layer
    from zoo.explain.structure.trained_parameters import Training

__all__ = ["graph", "summary"]

_FORMATS = ("onnx", "torchscript")


@explain.command()
def summary(
    artefact: Annotated[
        Path | None,
        typer.Argument(help="Folder of an artefact, a checkpoint, or an ONNX file like output/resnet/model.onnx."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Instead of an artefact: an architecture, with random weights.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Argument of --model: img_size=32. Repeatable.")
    ] = None,
    classes: Annotated[int, typer.Option(help="Number of labels of --model.")] = 1000,
    size: Annotated[str | None, typer.Option(help=f"{SIZE_HELP}, of --model; default: what it is made for.")] = None,
    colour: Annotated[str, typer.Option(help="Input of --model: RGB (3 channels) or L (1 channel).")] = "RGB",
    depth: Annotated[
        int | None,
        typer.Option(help="Add up what is deeper than so many parts of a layer's name; default: every layer."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print a network layer by layer: shapes, weights, multiply-accumulates, what was trained. ONNX: kinds of nodes."""
    if (artefact is None) == (model is None):
        raise UsageError("expected an artefact (like output/resnet), or an architecture with --model NAME")
    if artefact is not None and _is_graph(artefact):
        if depth is not None:
            raise UsageError(f"--depth: {artefact} is an ONNX file, which has nodes instead of layers within layers")
        _graph_summary(artefact, as_json)
        return
    from zoo.explain.structure.summary import layers_of
    from zoo.explain.structure.trained_parameters import training_of

    training = None
    if artefact is not None:
        from zoo.networks.checkpoint import load

        network, card = load(checkpoint_path(artefact))
        title, spec, training = card.name, card.use.input, training_of(network, card)
    else:
        assert model is not None
        title, (network, spec) = model, _built(model, settings or (), classes, size, colour)
    layers = layers_of(network, spec, trained=training.names if training else None, depth=depth)
    if as_json:
        print(json.dumps({"name": title, "input": [1, *spec.shape]} | _facts(layers, training)))
        return
    _print_layers(f"{title}: input {_shape((1, *spec.shape))}", layers, training)
    if artefact is not None and training is None:
        print("no training is recorded: its weights are as they were imported")


def _is_graph(artefact: Path) -> bool:
    """Whether it means an ONNX file: by its name, or because the folder has no checkpoint."""
    if artefact.is_dir():
        return not (artefact / CHECKPOINT).is_file() and any(artefact.glob("*.onnx"))
    return artefact.suffix == ".onnx"


def _built(
    architecture: str, settings: Sequence[str], classes: int, size: str | None, colour: str
) -> tuple[nn.Module, Input]:
    """An architecture with random weights, and its input."""
    from zoo.networks.describe import as_argument
    from zoo.networks.registry import build, input_for
    from zoo.networks.sizes import check_size

    if colour not in ("RGB", "L"):
        raise unknown_name("colour", colour, ("RGB", "L"))
    arguments = dict(as_argument(text) for text in settings)
    spec = input_for(
        architecture, colour=colour, size=parse_size(size) if size else None, photographs=True, arguments=arguments
    )
    network = build(architecture, classes=classes, channels=spec.channels, arguments=arguments)
    check_size(network, architecture, spec)
    return network, spec


def _facts(layers: Sequence[Layer], training: Training | None) -> dict[str, Any]:
    """The summary as JSON."""
    parameters, macs, size = _totals(layers)
    trained = training and {
        "stage": training.stage,
        "weights": training.count,
        "share": training.share,
        "why_not_by_layer": training.why or None,
    }
    totals = {"parameters": parameters, "macs": macs, "fp32_bytes": size}
    return {"layers": [dataclasses.asdict(layer) for layer in layers], "totals": totals, "trained": trained}


def _totals(layers: Sequence[Layer]) -> tuple[int, int, int]:
    from zoo.explain.structure.summary import FP32_BYTES

    parameters = sum(layer.parameters for layer in layers)
    return parameters, sum(layer.macs for layer in layers), FP32_BYTES * parameters


def _print_layers(title: str, layers: Sequence[Layer], training: Training | None) -> None:
    from rich.table import Table

    parameters, macs, size = _totals(layers)
    by_layer = training is not None and training.names is not None
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for heading in ("layer", "kind"):
        table.add_column(heading, no_wrap=True)
    for heading in ("output", "parameters", "trained %", "MACs", "% of MACs"):
        if heading != "trained %" or by_layer:
            table.add_column(heading, justify="right", no_wrap=True)
    for layer in layers:
        trained = [_percent(layer.trained, layer.parameters)] if by_layer else []
        table.add_row(
            layer.name or "(the network)",
            layer.kind,
            _shape(layer.output) if layer.output else "",
            f"{layer.parameters:,}" if layer.parameters else "",
            *trained,
            f"{layer.macs:,}" if layer.macs else "",
            f"{100 * layer.macs / macs:.1f}" if layer.macs else "",
        )
    console().print(table)
    print(f"{parameters:,} parameters, {macs:,} multiply-accumulates per image, {size / 1e6:.2f} MB in FP32")
    if training is not None:
        share = "" if training.share is None else f" ({100 * training.share:.1f} % of {parameters:,})"
        print(f"the last training ({training.stage}) changed {training.count:,} weights{share}")
        if not by_layer:
            print(f"which ones is not known: {training.why}")


def _percent(part: int | None, whole: int) -> str:
    return f"{100 * (part or 0) / whole:.1f}" if whole else ""


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)


def _graph_summary(artefact: Path, as_json: bool) -> None:
    from zoo.explain.structure.graph_summary import summarise

    path = graph_paths(artefact)[0]
    found, card = summarise(path)
    if as_json:
        print(json.dumps({"name": card.name, "path": str(path), "macs": card.inform.macs} | dataclasses.asdict(found)))
        return
    _print_graph(path, found, card)


def _print_graph(path: Path, found: GraphSummary, card: Card) -> None:
    from rich.table import Table

    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    print(f"{short(path)}: {card.name}, {found.file_bytes / 1e6:.2f} MB, opset {opsets}")
    for direction, values in (("input", found.inputs), ("output", found.outputs)):
        for name, described in values.items():
            print(f"{direction} {name}: {described}")
    for title, rows in (
        (("nodes", "count"), [(kind, f"{count:,}") for kind, count in found.nodes.items()]),
        (
            ("weights", "tensors", "numbers", "bytes"),
            [(kind, f"{w.tensors:,}", f"{w.numbers:,}", f"{w.bytes:,}") for kind, w in found.weights.items()],
        ),
    ):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column, heading in enumerate(title):
            table.add_column(heading, justify="right" if column else "left", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console().print(table)
    print(f"{sum(found.nodes.values()):,} nodes; {card.inform.macs:,} multiply-accumulates per image, by its card")


@explain.command()
def graph(
    artefact: Annotated[Path, typer.Argument(help="Folder of an artefact, or one of its files.")],
    form: Annotated[str, typer.Option("--format", help="onnx, or torchscript: a trace of the checkpoint.")] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File to write. Default: for onnx none, it is there; for torchscript explain/graph.pt in the folder.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """A file of the network's graph for a viewer like Netron; ONNX with --out is a copy with all shapes filled in."""
    if form not in _FORMATS:
        raise unknown_name("format", form, _FORMATS)
    if form == "torchscript":
        _torchscript(artefact, out)
        return
    from zoo.explain.structure.viewer_files import count_shapes, write_shaped

    path = graph_paths(artefact.parent if artefact.suffix == ".safetensors" else artefact)[0]
    if out is None:
        shaped, values = count_shapes(path)
        say(path)
        if shaped < values:
            print(
                f"{values - shaped} of {values} values between its nodes have no shape; --out FILE.onnx fills them in"
            )
        return
    target = picture_path(artefact, out, "graph", ".onnx")
    shaped, values = write_shaped(path, target)
    say(target)
    print(f"{shaped} of {values} values between its nodes have a shape")


def _torchscript(artefact: Path, out: Path | None) -> None:
    from zoo.explain.structure.viewer_files import write_torchscript
    from zoo.networks.checkpoint import load

    source = checkpoint_path(artefact.parent if artefact.suffix == ".onnx" else artefact)
    target = picture_path(artefact, out, "graph", ".pt")
    network, card = load(source)
    worst = write_torchscript(network, card, target)
    say(target)
    print(f"largest difference between its logits and the network's: {worst:.2g}")
