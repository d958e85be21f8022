"""Which images a command asks an artefact about: files and folders that were named, or a split of its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.base.errors import ArtefactError, UsageError, unknown_name
from zoo.commands.runs import notes_of

if TYPE_CHECKING:
    from zoo.artefact.card import Card
    from zoo.data.image_set import ImageSet

__all__ = ["Images", "Split", "pictures_of"]

Split = Annotated[
    str, typer.Option(help="validation; or test, which is to be read once, at the end, not to choose by.")
]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--images",
        help="Image file, or folder of images, whose labels nobody knows. Repeatable.",
        show_default=False,
    ),
]


def pictures_of(
    path: Path,
    card: Card,
    *,
    images: Sequence[Path] | None = None,
    data: str | None = None,
    split: str = "validation",
    labels_needed: bool = False,
) -> ImageSet:
    """What was named on the command line, else the split of the data that the artefact was trained on.

    Args:
        path: the artefact's file, whose folder remembers its data.
        card: its card.
        images: files and folders named with --images.
        data: --data.
        split: --split.
        labels_needed: what is asked for makes no sense without true labels.

    Raises:
        UsageError: both images and data, images where labels are needed, or an unknown split.
        ArtefactError: nothing says where the artefact's data is.
        DataError: the data, or what was named, cannot be used.
    """
    from zoo.data.image_set import labelled, named

    if split not in ("validation", "test"):
        raise unknown_name("split", split, ("validation", "test"))
    if images and labels_needed:
        raise UsageError("this needs images with labels, and those of --images are not known; name --data instead")
    if images and data:
        raise UsageError("--images are images without labels, --data is a data set with labels; give one of them")
    if images:
        return named(images, white=card.use.input.range)
    try:
        notes = notes_of(path, data)
    except ArtefactError as error:
        without = (
            " with labels, which this needs" if labels_needed else ", or --images FOLDER for images without labels"
        )
        raise ArtefactError(f"{error}{without}") from error
    return labelled((notes.test if split == "test" else notes.data).open_for(card), split)
