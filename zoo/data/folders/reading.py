"""What a folder or a list is called, and what the user says of how to read it where it could mean two things."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from zoo.base.errors import UsageError, unknown_name

__all__ = ["LAYOUTS", "Reading", "name_of"]

LAYOUTS = ("auto", "splits", "classes")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How to read a folder or a list."""

    layout: str = "auto"
    """Of a folder: `splits` (train/CLASS, val/CLASS, test/CLASS), `classes` (CLASS), or `auto`: what it looks like."""
    path_column: str = ""
    """Of a list: the column of paths; "": the one with a usual name."""
    label_column: str = ""
    split_column: str = ""
    range: float | None = None
    """The sample that is white in images of more than 8 bits whose files do not say; default: 65535, or the largest
    value of 10, 12 or 14 bits where no 16-bit training image exceeds it. 32-bit and floating-point images need it."""

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise unknown_name("layout", self.layout, LAYOUTS)
        if self.range is not None and not 0 < self.range < math.inf:
            raise UsageError(
                f"reading.range must be a positive number, got {self.range:g}; leave it out for the default"
            )


def name_of(data: str) -> str:
    """What a data set is called: a folder's name, FOLDER-LIST for a list, else the name itself."""
    path = Path(data)
    if path.is_file():
        return f"{path.resolve().parent.name}-{path.stem}"
    return path.resolve().name if "/" in data or path.is_dir() else data
