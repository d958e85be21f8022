"""Your own images without labels: every image below a folder, however it is laid out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from zoo.artefact.decode import SUFFIXES
from zoo.base.errors import DataError
from zoo.data.dataset import Sample
from zoo.data.image_files import ImageFile, is_hidden, read_image_files

__all__ = ["UNKNOWN", "open_images"]

UNKNOWN = -1
"""The label of an image whose label is not known."""


def open_images(folder: Path) -> list[Sample]:
    """Open every image below a folder, however deep; each is decoded once, unreadable ones are skipped with a note.

    Args:
        folder: images are known by their suffix (zoo.artefact.decode.SUFFIXES); hidden files and folders are
            passed over.

    Returns:
        The images in the order of their paths relative to `folder`, with the label UNKNOWN; of images with the same
        bytes the first.

    Raises:
        DataError: no such folder, no image below it, or too many unreadable ones.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: expected a folder of images, found {found} there; name the folder they are in")
    inside = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [
        ImageFile(folder / path, path.as_posix(), "")
        for path in inside
        if not is_hidden(path) and (folder / path).is_file()
    ]
    if not files:
        raise DataError(
            f"{folder}: no images below it; expected files ending in {', '.join(sorted(SUFFIXES))}, in any layout"
        )
    samples, _ = read_image_files({"all": files}, [""], folder)
    distinct: dict[str, Sample] = {}
    for sample in samples["all"]:
        distinct.setdefault(sample.digest, dataclasses.replace(sample, label=UNKNOWN))
    return list(distinct.values())
