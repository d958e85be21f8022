"""The images that artefacts are asked: a split of a data set, or the user's own files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoo.artefact.decode import inspect
from zoo.base.errors import DataError, ImageError
from zoo.base.statistics.paired import Labels
from zoo.data.dataset import Dataset, Sample
from zoo.data.folders.unlabelled import UNKNOWN, open_images

__all__ = ["ImageSet", "labelled", "named", "truth"]


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """What every artefact is asked."""

    name: str
    split: str = ""
    """`train`, `validation` or `test`; "" for images without labels."""
    samples: Sequence[Sample] = field(repr=False)
    dataset: Dataset | None = field(default=None, repr=False)
    """Knows the labels; None: they are not known."""

    def __post_init__(self) -> None:
        if not self.samples:
            raise DataError(f"{self.name}: the {self.split} split has no images; name another one, or --images FOLDER")

    def truth(self, labels: tuple[str, ...], *, where: str) -> Labels | None:
        """The true labels as indices into `labels`: int64 [N]; None where they are not known.

        Args:
            labels: that an artefact knows.
            where: the artefact's name, for messages.

        Raises:
            DataError: the data set has a label that the artefact does not know.
        """
        return truth(self.dataset, self.split, labels, where=where) if self.dataset is not None else None


def labelled(dataset: Dataset, split: str) -> ImageSet:
    """A split of a data set."""
    return ImageSet(name=dataset.name, split=split, samples=dataset.splits[split], dataset=dataset)


def named(paths: Sequence[Path], *, white: float | None = None) -> ImageSet:
    """Image files, and every image below a folder, in this order; their labels are not known.

    Args:
        paths: of the files and folders.
        white: see zoo.data.folders.unlabelled.open_images.

    Raises:
        DataError: a path that is not there, a file that is no image, a folder without images, or with too many
            unreadable ones.
    """
    samples: list[Sample] = []
    for path in paths:
        samples += [_sample(path)] if path.is_file() else open_images(path, white=white)
    return ImageSet(name=" ".join(map(str, paths)), samples=samples)


def truth(dataset: Dataset, split: str, labels: tuple[str, ...], *, where: str) -> Labels:
    """The true labels of a split as indices into `labels`: int64 [N].

    Raises:
        DataError: a label is unknown there.
    """
    if unknown := sorted(set(dataset.labels) - set(labels)):
        raise DataError(
            f"{where} does not know the label {unknown[0]!r} of {dataset.name}; it knows {list(labels)[:10]}"
        )
    index = {label: number for number, label in enumerate(labels)}
    return np.array([index[dataset.labels[sample.label]] for sample in dataset.splits[split]], dtype=np.int64)


def _sample(path: Path) -> Sample:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    try:
        depth = inspect(data)
    except ImageError as error:
        raise DataError(f"{path}: {error}; name another image") from error
    return Sample(name=path.name, label=UNKNOWN, digest=hashlib.sha256(data).hexdigest(), source=path, depth=depth)
