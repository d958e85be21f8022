"""The size of an input as it is typed: one edge, or height and width."""

from __future__ import annotations

import re

from zoo.base.errors import UsageError

__all__ = ["SIZE_HELP", "Size", "height_and_width", "parse_size"]

Size = int | tuple[int, int]
"""Edge of a square, or height and width; in pixels."""

SIZE_HELP = "Input in pixels: edge, or HEIGHTxWIDTH like 224x320"


def parse_size(text: str, *, where: str = "--size") -> Size:
    """A size as it is typed: 224, 224x320, "224 320" or [224, 320].

    Raises:
        UsageError: it is none, or an edge is not positive; `where` names it.
    """
    numbers = re.fullmatch(r"\s*\[?\s*(\d{1,6})(?:\s*[x×,\s]\s*(\d{1,6}))?\s*\]?\s*", text.lower())
    if numbers is None:
        raise UsageError(f"{where}: expected an edge or HEIGHTxWIDTH in pixels, like 224 or 224x320, got {text!r}")
    height, width = numbers.groups()
    size = int(height) if width is None else (int(height), int(width))
    height_and_width(size, where=where)
    return size


def height_and_width(size: Size, *, where: str = "size") -> tuple[int, int]:
    """Height and width of a size.

    Raises:
        UsageError: an edge is not positive; `where` names the size.
    """
    edges = (size, size) if isinstance(size, int) else size
    if min(edges) < 1:
        given = " x ".join(map(str, edges if isinstance(size, tuple) else edges[:1]))
        raise UsageError(f"{where} must be at least 1, got {given}; leave it out for the default")
    return edges
