"""Image files on disk: found class by class, decoded once, and remembered as good."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.base.errors import DataError
from zoo.base.progress import track
from zoo.data.dataset import Sample
from zoo.data.depth import without_range
from zoo.data.folders.unused import Unused, check_lost, tell
from zoo.data.folders.verified import verify
from zoo.data.folders.walk import walk

__all__ = ["ImageFile", "files_of_classes", "read_image_files", "verified_samples"]


MISSING = "missing"


class ImageFile(NamedTuple):
    """A image that has not been read yet."""

    path: Path | str
    name: str
    """Relative to the data set, with `/` between folders on every system."""
    label: str


def files_of_classes(folder: Path, root: Path) -> list[ImageFile]:
    """Every image (by suffix) of `folder/CLASS/`, however deep, named relative to `root`."""
    prefix = "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
    return [
        ImageFile(str(folder / name), prefix + name, name.split("/")[0]) for name in walk(folder).images if "/" in name
    ]


def read_image_files(
    groups: Mapping[str, Sequence[ImageFile]], labels: Sequence[str], root: Path
) -> tuple[dict[str, list[Sample]], tuple[Unused, ...]]:
    """Like :func:`verified_samples`, for files that a publisher lists; tells which cannot be read.

    Raises:
        DataError: a file is missing, or too many cannot be read.
    """
    samples, unused = verified_samples(groups, labels, root)
    if missing := next((entry.file for entry in unused if entry.reason == MISSING), None):
        raise DataError(f"{root}: an image is missing: {missing}; unpack it again")
    check_lost(unused, sum(map(len, samples.values())), str(root))
    tell(unused, str(root))
    return samples, tuple(unused)


def verified_samples(
    groups: Mapping[str, Sequence[ImageFile]], labels: Sequence[str], root: Path, *, white: float | None = None
) -> tuple[dict[str, list[Sample]], list[Unused]]:
    """Decode every file once, so that nothing fails in the middle of training; afterwards sizes and times are compared.

    Args:
        groups: the files of each split.
        labels: the classes in the order of the labels.
        root: the data set's folder: its path names what is remembered.
        white: see zoo.artefact.decode.decode; None: images that want one cannot be read.

    Returns:
        The samples of each split, in the given order, and the files that are missing or cannot be read.
    """
    index = {label: number for number, label in enumerate(labels)}
    samples: dict[str, list[Sample]] = {split: [] for split in groups}
    unused: list[Unused] = []
    total = sum(map(len, groups.values()))
    named, asked = itertools.tee((split, file) for split, files in groups.items() for file in files)
    verdicts = verify(((file.name, os.fspath(file.path)) for _, file in asked), root)
    steps = track(zip(named, verdicts, strict=True), total=total, description="Reading images", unit="image")
    for (split, file), verdict in steps:
        digest, problem, missing, depth = verdict
        if problem:
            unused.append(Unused(file.name, MISSING if missing else "unreadable", file.label, problem))
        elif depth and white is None and (reason := without_range(depth)):
            unused.append(Unused(file.name, reason, file.label, f"largest sample {depth.largest:g}"))
        else:
            source = os.fspath(file.path)
            sample = Sample(name=file.name, label=index[file.label], digest=digest, source=source, depth=depth)
            samples[split].append(sample)
    return samples, unused
