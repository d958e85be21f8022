"""Images of a data set as folders of classes, for programs that read those."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from zoo.data.dataset import Sample

__all__ = ["READ_BY_ALL", "class_folders"]

READ_BY_ALL = frozenset({".jpeg", ".jpg", ".png"})
"""Suffixes that timm's reader of folders takes; it passes over others without a word."""


@contextmanager
def class_folders(labels: Sequence[str], chosen: Mapping[str, Sequence[Sample]]) -> Iterator[Path]:
    """The images as SPLIT/CLASS/* in a temporary folder: links to files, and files of what is in memory.

    Args:
        labels: of the data set; the folders of classes are their numbers, so that every program sorts them alike.
        chosen: split -> its images.
    """
    with tempfile.TemporaryDirectory(prefix="pocketzoo-training-") as name:
        root = Path(name)
        for split, samples in chosen.items():
            for number in range(len(labels)):
                (root / split / f"{number:05d}").mkdir(parents=True)
            for index, sample in enumerate(samples):
                target = root / split / f"{sample.label:05d}"
                if isinstance(sample.source, bytes):
                    (target / f"{index:07d}.png").write_bytes(sample.source)
                else:
                    file = Path(sample.source)
                    suffix = file.suffix.lower()
                    # Pillow, which decodes for all of them, looks at the bytes; the name only gets a file read.
                    link = f"{index:07d}{suffix if suffix in READ_BY_ALL else '.jpg'}"
                    (target / link).symlink_to(file.resolve())
        yield root
