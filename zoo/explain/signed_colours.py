"""Arrays of numbers as colours, where zero is the middle of the scale: weights and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

__all__ = ["in_rows", "signed"]

T = TypeVar("T")


def signed(values: npt.NDArray[np.float32], limit: float) -> npt.NDArray[np.uint8]:
    """Numbers between -limit and limit as colours: uint8 [h, w, 3].

    Three channels become red, green and blue, with zero a middle grey. One channel goes from blue over white, at
    zero, to red.

    Args:
        values: float32 [C, h, w] with C of 1 or 3; what lies beyond the limit is cut off.
        limit: the largest magnitude; 0 stands for values that are all zero.
    """
    share = np.clip(values / (limit or 1.0), -1, 1) / 2 + 0.5  # [C, h, w], 0.5 at zero
    if len(share) == 1:
        return np.asarray(mpl.colormaps["RdBu_r"](share[0], bytes=True)[..., :3], dtype=np.uint8)
    return np.asarray(np.round(np.moveaxis(share, 0, -1) * 255), dtype=np.uint8)


def in_rows(items: Sequence[T], columns: int | None = None) -> list[Sequence[T]]:
    """Items line by line; by default on a page somewhat wider than high."""
    width = columns or math.ceil(math.sqrt(1.4 * len(items)))
    return [items[start : start + width] for start in range(0, len(items), width)]
