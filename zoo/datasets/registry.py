"""Data sets by name or folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from zoo.datasets.base import Dataset, limit
from zoo.datasets.embedded import digits, mnist5k
from zoo.datasets.folder import open_folder
from zoo.errors import unknown_name

__all__ = ["EMBEDDED", "open_dataset"]

EMBEDDED: dict[str, Callable[[], Dataset]] = {"digits": digits, "mnist5k": mnist5k}


@functools.lru_cache(maxsize=4)
def open_dataset(name: str, *, seed: int = 0, per_split: int | None = None) -> Dataset:
    """Open a data set.

    Args:
        name: one of EMBEDDED, or the path of a folder (see zoo.datasets.folder).
        seed: of the splits that are made here; the embedded data sets have fixed ones.
        per_split: keep at most so many images of each split.

    Raises:
        UsageError: neither a known name nor a folder.
        DataError: the folder cannot be used.
    """
    if name in EMBEDDED:
        dataset = EMBEDDED[name]()
    elif Path(name).is_dir():
        dataset = open_folder(Path(name), seed=seed)
    else:
        raise unknown_name("data set (or folder that does not exist)", name, EMBEDDED)
    return limit(dataset, per_split) if per_split else dataset
