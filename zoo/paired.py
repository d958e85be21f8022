"""The difference of two classifiers on the same images, and how sure it is."""

from __future__ import annotations

import math

__all__ = ["paired_difference"]


def paired_difference(n: int, *, gained: int, lost: int) -> tuple[float, float]:
    """Middle and standard error of the difference of two accuracies, second minus first, as fractions.

    Images that both recognise, or neither, say nothing about the difference. Agresti & Min 2005, "Simple improved
    confidence intervals for comparing matched proportions" (Statistics in Medicine 24:729), add half an image to each
    cell of the fourfold table, so that an interval of no difference is not empty.

    Args:
        n: images.
        gained: those that only the second classifier recognises.
        lost: those that only the first one recognises.
    """
    spread = math.sqrt((gained + lost + 1) - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    return (gained - lost) / (n + 2), spread
