"""Your own images without labels: every image below a folder, however it is laid out."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from zoo.artefact.decode import SUFFIXES
from zoo.base.errors import DataError
from zoo.base.progress import note
from zoo.data.dataset import Sample
from zoo.data.folders.image_files import ImageFile, verified_samples
from zoo.data.folders.unused import Unused, check_lost, tell
from zoo.data.folders.walk import Walked, walk

__all__ = ["UNKNOWN", "open_images", "sample_images"]

UNKNOWN = -1
"""The label of an image whose label is not known."""

_DRAWN = 4
"""Times as many images as are wanted are looked at, at most: of a million copies of a few, all would be."""


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
    found = _listed(folder)
    samples, unread = verified_samples({"all": _files(folder, found.images)}, [""], folder, white=white)
    return _used(samples["all"], [*found.unused, *unread], folder)


def sample_images(folder: Path, count: int, *, seed: int = 0, white: float | None = None) -> list[Sample]:
    """Some images of a folder, drawn by their names: no others are read, however many there are.

    Where files cannot be read or hold the same image, others are drawn instead, until four times `count` were looked
    at; where there are no more than `count`, it is the same as :func:`open_images`, which also describes the other
    arguments, what comes back, and the errors.

    Args:
        folder: as there.
        count: at most so many.
        seed: of the draw.
        white: as there.
    """
    found = _listed(folder)
    names = list(found.images)
    random.Random(seed).shuffle(names)
    samples: list[Sample] = []
    unread: list[Unused] = []
    start = distinct = 0
    most = min(_DRAWN * count, len(names))
    while distinct < count and start < most:
        some = names[start : min(start + count - distinct, most)]
        start += len(some)
        more, lost = verified_samples({"all": _files(folder, sorted(some))}, [""], folder, white=white)
        samples, unread = samples + more["all"], unread + lost
        distinct = len({sample.digest for sample in samples})
    if start < len(names):
        few = f"; only {distinct:,} of them differ" if distinct < count else ""
        note(f"{folder}: {start:,} of {len(names):,} images are looked at, drawn with the seed {seed}{few}")
    place = {name: number for number, name in enumerate(found.images)}
    return _used(sorted(samples, key=lambda sample: place[sample.name]), [*found.unused, *unread], folder)


def _listed(folder: Path) -> Walked:
    if not folder.is_dir():
        there = "a file" if folder.exists() else "nothing"
        raise DataError(f"{folder}: expected a folder of images, found {there} there; name the folder they are in")
    found = walk(folder)
    if not found.images:
        raise DataError(
            f"{folder}: no images below it; expected files ending in {', '.join(sorted(SUFFIXES))}, in any layout"
        )
    return found


def _files(folder: Path, names: Iterable[str]) -> list[ImageFile]:
    return [ImageFile(f"{folder}/{name}", name, "") for name in names]


def _used(samples: Sequence[Sample], unused: Sequence[Unused], folder: Path) -> list[Sample]:
    """The first of each image, after saying what is not used."""
    check_lost(unused, len(samples), str(folder))
    tell(unused, str(folder))
    distinct: dict[str, Sample] = {}
    for sample in samples:
        distinct.setdefault(sample.digest, dataclasses.replace(sample, label=UNKNOWN))
    return list(distinct.values())
