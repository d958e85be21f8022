"""The command that makes an artefact of a pretrained network as it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.base.commandline import TRAIN, AsJson, app
from zoo.base.size import SIZE_HELP, parse_size

__all__ = ["import_artefact"]


@app.command(name="import", rich_help_panel=TRAIN)
def import_artefact(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Architecture, with timm's tag of its weights if you want certain ones.", show_default=False
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            help="Instead of NAME: a CLIP of open_clip, like ViT-B-32-quickgelu.openai, whose classifier is made of "
            "--labels; --weights FILE is its checkpoint. Needs pocketzoo[clip].",
            show_default=False,
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            "--template",
            help="With --clip: the text of a label {}; several are averaged. Repeatable. Default: a photo of a {}.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            help="pretrained, or a file of timm, Lightning, Hugging Face, ...; FILE#KEY for one of several networks.",
        ),
    ] = "pretrained",
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Text file with one label per line; default: the weights' own, else ImageNet's."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of the new artefact; default: output/NAME-LABELS.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Argument of the architecture: img_size=384. Repeatable.")
    ] = None,
    size: Annotated[str | None, typer.Option(help=f"{SIZE_HELP}; default: what it was pretrained with.")] = None,
    export: Annotated[
        bool, typer.Option("--export/--no-export", help="Export model.onnx, too, so that it can be served.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Make an artefact of a pretrained network, without training.

    It can be compressed and served as it is.
    """
    from compress.chain import export_artefact
    from zoo.base.errors import ArtefactError, CheckError, UsageError
    from zoo.base.files import CHECKPOINT

    if (name is None) == (clip is None):
        raise UsageError("name what to import: an architecture, like resnet50, or --clip NAME, not both")
    if clip is not None:
        from zoo.training.zero_shot import TEMPLATE, clip_folder, import_clip

        if settings or size is not None:
            raise UsageError("--set and --size go with an architecture: a CLIP is taken as it was trained")
        path = (out or clip_folder(clip, labels)) / CHECKPOINT
        card = import_clip(clip, path, labels=labels, templates=template or (TEMPLATE,), weights=weights)
    else:
        from zoo.networks.describe import as_argument
        from zoo.training.pretrained import import_network, plan_import

        if template:
            raise UsageError("--template goes with --clip: the labels of other networks are not read as texts")
        assert name is not None
        arguments = dict(as_argument(text) for text in settings or ())
        edges = None if size is None else parse_size(size)
        folder = out or plan_import(name, weights=weights, labels=labels, arguments=arguments, size=edges).folder
        path = folder / CHECKPOINT
        card = import_network(name, path, weights=weights, labels=labels, arguments=arguments, size=edges)
    folder = path.parent
    try:
        exported = export_artefact(folder) if export else None
    except (ArtefactError, CheckError) as error:
        raise type(error)(
            f"{error}; {path} is there and can be pruned or trained, but neither quantized nor served"
        ) from error
    if as_json:
        print(
            json.dumps(
                {"path": str(path), "onnx": str(exported) if exported else None, "card": dataclasses.asdict(card)}
            )
        )
        return
    height, width = card.use.input.size
    print(
        f"{path}: {card.build.architecture} of {card.inform.source}, {len(card.use.labels):,} labels, "
        f"{height} x {width} pixels, {card.inform.macs / 1e6:.1f} MMACs, {path.stat().st_size / 1e6:.2f} MB"
    )
    if exported:
        print(f"{exported}: {exported.stat().st_size / 1e6:.2f} MB")
