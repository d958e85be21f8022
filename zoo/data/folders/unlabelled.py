"""Your own images without labels: every image below a folder, however it is laid out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zoo.artefact.decode import SUFFIXES
from zoo.base.errors import DataError
from zoo.data.dataset import Sample
from zoo.data.folders.image_files import ImageFile, verified_samples
from zoo.data.folders.unused import check_lost, tell
from zoo.data.folders.walk import walk

__all__ = ["UNKNOWN", "open_images"]

UNKNOWN = -1
"""The label of an image whose label is not known."""


def open_images(folder: Path, *, white: float | None = None) -> list[Sample]:
    """Open every image below a folder, however deep; each is decoded once, unreadable ones are skipped with a note.

    Args:
        folder: images are known by their suffix (zoo.artefact.decode.SUFFIXES); hidden files and folders are
            passed over, and what is not used is counted in a note.
        white: the card's `use.input.range` of the network that they are for; without one, images whose samples have no
            range are unreadable.

    Returns:
        The images in the order of their paths relative to `folder`, with the label UNKNOWN; of images with the same
        bytes the first.

    Raises:
        DataError: no such folder, no image below it, or too many unreadable ones.
    """
    if not folder.is_dir():
        there = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: expected a folder of images, found {there} there; name the folder they are in")
    found = walk(folder)
    files = [ImageFile(f"{folder}/{name}", name, "") for name in found.images]
    if not files:
        raise DataError(
            f"{folder}: no images below it; expected files ending in {', '.join(sorted(SUFFIXES))}, in any layout"
        )
    samples, unread = verified_samples({"all": files}, [""], folder, white=white)
    unused = [*found.unused, *unread]
    check_lost(unused, len(samples["all"]), str(folder))
    tell(unused, str(folder))
    distinct: dict[str, Sample] = {}
    for sample in samples["all"]:
        distinct.setdefault(sample.digest, dataclasses.replace(sample, label=UNKNOWN))
    return list(distinct.values())
