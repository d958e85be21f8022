"""What the user says about how a folder or a list is to be read, where it could mean two things."""

from __future__ import annotations

from dataclasses import dataclass

from zoo.base.errors import unknown_name

__all__ = ["LAYOUTS", "Reading"]

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

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise unknown_name("layout", self.layout, LAYOUTS)
