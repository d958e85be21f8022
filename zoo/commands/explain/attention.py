"""`pocketzoo explain attention`: what vision transformers look at, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.base.errors import ArtefactError, ImageError
from zoo.commands.explain.group import Out, explain, picture_path, say

__all__ = ["attention"]


@explain.command()
def attention(
    artefacts: Annotated[
        list[Path], typer.Argument(help="Folders of artefacts, like output/vit-lora; a row of the image each.")
    ],
    image: Annotated[Path, typer.Option("--image", help="Image file.", show_default=False)],
    method: Annotated[
        str,
        typer.Option(
            help="heads: each head of a block; rollout: through all blocks (Abnar and Zuidema 2020); gradient: for one "
            "label (Chefer et al. 2021); all: the heads' mean and both."
        ),
    ] = "all",
    label: Annotated[
        str | None,
        typer.Option(
            help="Whose evidence the gradient shows, like the true label. Default, and for a network that does not "
            "know it: its own answer.",
            show_default=False,
        ),
    ] = None,
    block: Annotated[
        int | None, typer.Option(help="Block whose heads are shown, from 0. Default: the last.", show_default=False)
    ] = None,
    fusion: Annotated[str, typer.Option(help="Of the heads in rollout: mean, max or min.")] = "mean",
    out: Out = None,
) -> None:
    """Draw which parts of an image vision transformers attend to.

    Each network gets the image as its own card says, and is shown as it gets it.
    """
    from zoo.base.errors import unknown_name
    from zoo.explain.inside.attention_view import METHODS, draw_views, views
    from zoo.explain.inside.rollout import FUSIONS

    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if fusion not in FUSIONS:
        raise unknown_name("fusion of heads", fusion, FUSIONS)
    path = picture_path(artefacts[0], out, "attention" if method == "all" else f"attention-{method}")
    try:
        data = image.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{image}: cannot be read: {error}") from error
    try:
        found = views(artefacts, data, label=label, block=block, fusion=fusion)
    except ImageError as error:
        raise ImageError(f"{image}: {error}") from error
    draw_views(path, found, method=method, title=image.name)
    say(path)
