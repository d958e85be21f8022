"""`pocketzoo explain` inside a network: its filters, feature maps, what excites its units, and Grad-CAM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.base.commandline import Artefact
from zoo.base.errors import UsageError, unknown_name
from zoo.commands.explain.group import Out, explain, picture_path, say

if TYPE_CHECKING:
    from torch import nn

    from zoo.artefact.card import Card

__all__ = ["features", "filters", "gradcam", "guided"]

Image = Annotated[Path, typer.Argument(help="Image file.")]
Layer = Annotated[
    str, typer.Option("--layer", help="Name of a layer; `pocketzoo explain summary` lists them.", show_default=False)
]


@explain.command()
def filters(
    artefact: Artefact,
    most: Annotated[int, typer.Option(min=1, help="Number of filters; of more, those of largest norm.")] = 64,
    out: Out = None,
) -> None:
    """Draw the filters of the first layer: a CNN's first convolution, or a ViT's patch embedding."""
    import torch

    from zoo.explain.inside.filters import draw_filters, first_filters

    path = picture_path(artefact, out, "filters")
    model, card = _open(artefact)
    found = first_filters(model, torch.zeros(1, *card.use.input.shape))
    draw_filters(path, found, name=_name(artefact), most=most)
    say(path)


@explain.command()
def features(
    artefact: Artefact,
    image: Image,
    layer: Layer,
    most: Annotated[int, typer.Option(min=1, help="Number of channels, strongest first.")] = 32,
    out: Out = None,
) -> None:
    """Draw what the channels of a layer make of an image."""
    from zoo.explain.inside.features import draw_features, feature_maps
    from zoo.explain.inside.input_image import picture

    path = picture_path(artefact, out, f"features-{layer}")
    data = _read(image)
    model, card = _open(artefact)
    inputs, seen = picture(data, card)
    found = feature_maps(model, inputs, layer)
    draw_features(path, found, seen, name=_name(artefact), title=_title(image.name, 14), most=most)
    say(path)


@explain.command()
def guided(
    artefact: Artefact,
    image: Image,
    layer: Layer,
    units: Annotated[
        str | None,
        typer.Option(help="Channels or features of the layer: 3,17. Default: the most active.", show_default=False),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Number of units unless --units names them.")] = 10,
    out: Out = None,
) -> None:
    """Draw which pixels excite units of a layer, by guided backpropagation; for networks with ReLUs."""
    from zoo.explain.inside.guided import draw_guided
    from zoo.explain.inside.guided import guided as explain_units
    from zoo.explain.inside.input_image import picture
    from zoo.networks.registry import classifier_names

    path = picture_path(artefact, out, f"guided-{layer}")
    chosen = _numbers(units) if units is not None else None
    data = _read(image)
    model, card = _open(artefact)
    inputs, seen = picture(data, card)
    found = explain_units(model, inputs, layer, units=chosen, most=most)
    labels = dict(enumerate(card.use.labels)) if layer in classifier_names(model) else None
    draw_guided(path, found, seen, name=_name(artefact), title=_title(image.name, 21), labels=labels)
    say(path)


@explain.command()
def gradcam(
    artefact: Artefact,
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of images.")],
    layer: Annotated[
        str | None,
        typer.Option(help="Name of a layer. Default: the last whose places the answer depends on.", show_default=False),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="What to look for. Default: the network's own answer.", show_default=False)
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Number of images; of more, the first.")] = 30,
    out: Out = None,
) -> None:
    """Draw which places of images speak for a label, by Grad-CAM; for CNNs and vision transformers."""
    from zoo.data.image_set import named
    from zoo.explain.inside.gradcam import default_layer, draw_heats, explain_labels
    from zoo.explain.inside.input_image import picture

    path = picture_path(artefact, out, "gradcam")
    model, card = _open(artefact)
    samples = named(_existing(images), white=card.use.input.range).samples[:most]
    if label is not None and label not in card.use.labels:
        raise unknown_name("label", label, card.use.labels)
    pictures = [(_title(sample.name, 21), *picture(sample.read(), card)) for sample in samples]
    layer = layer or default_layer(model, pictures[0][1])
    heats = explain_labels(
        model,
        pictures,
        card.use.labels,
        layer=layer,
        label=None if label is None else card.use.labels.index(label),
        temperature=card.use.temperature,
    )
    draw_heats(path, heats, name=_name(artefact), layer=layer)
    say(path)


def _open(artefact: Path) -> tuple[nn.Module, Card]:
    from zoo.explain.checkpoint_of_graph import checkpoint_for
    from zoo.networks.checkpoint import load

    return load(checkpoint_for(artefact))


def _name(artefact: Path) -> str:
    path = artefact.resolve()
    return path.name if path.is_dir() else path.parent.name


def _title(name: str, most: int) -> str:
    """A file's name without its folder, and with its middle left out where it would not fit into a line."""
    path = Path(name)
    stem = path.stem
    if len(path.name) > most:
        stem = stem[: max(1, most - 1 - len(path.suffix))] + "…"
    return stem + path.suffix


def _read(image: Path) -> bytes:
    from zoo.data.image_set import named

    if image.is_dir():
        raise UsageError(f"{image} is a folder, expected one image file")
    return named(_existing([image])).samples[0].read()


def _existing(paths: Sequence[Path]) -> Sequence[Path]:
    for path in paths:
        if not path.exists():
            raise UsageError(f"there is no image at {path}; name an image file")
    return paths


def _numbers(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--units {text}: expected whole numbers and commas, like 3,17") from None
