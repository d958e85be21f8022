"""Two classifiers on the same images: what changed between them, and how sure that is. `N` images, `K` labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = [
    "ClassLoss",
    "Labels",
    "Logits",
    "Paired",
    "agreement",
    "compare_answers",
    "paired_difference",
    "worst_losses",
]

Logits = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The difference of two accuracies on the same images, in points (per cent of the images)."""

    n: int
    """Images."""
    gained: int
    """Images that only the second classifier recognises."""
    lost: int
    """Images that only the first one recognises."""
    points: float
    """Second minus first."""
    low: float
    high: float
    """95 % interval of the difference."""
    p: float
    """Chance of a split of gained and lost at least as uneven, were both classifiers equally good."""


@dataclass(frozen=True, kw_only=True)
class ClassLoss:
    """How a label fared between two classifiers. Fractions, not per cent."""

    label: str
    n: int
    """Images that have it."""
    before: float
    """Recall of the first classifier."""
    after: float
    """Recall of the second one."""


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


def compare_answers(before: Logits, after: Logits, labels: Labels) -> Paired:
    """What the second classifier wins and loses against the first.

    The interval is that of :func:`paired_difference`; p is McNemar's exact test.

    Args:
        before: logits [N, K] of the first classifier.
        after: logits [N, K] of the second one.
        labels: [N], the true labels.
    """
    # It takes a second to load, which paired_difference does without.
    from scipy.stats import binomtest, norm

    first, second = before.argmax(axis=1) == labels, after.argmax(axis=1) == labels
    n, gained, lost = len(labels), int((second & ~first).sum()), int((first & ~second).sum())
    middle, spread = paired_difference(n, gained=gained, lost=lost)
    reach = float(norm.ppf(0.975)) * spread
    return Paired(
        n=n,
        gained=gained,
        lost=lost,
        points=100 * (gained - lost) / n,
        low=100 * max(-1.0, middle - reach),
        high=100 * min(1.0, middle + reach),
        p=float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    )


def agreement(before: Logits, after: Logits) -> float:
    """Share of images that both classifiers [N, K] answer with the same label."""
    return float((before.argmax(axis=1) == after.argmax(axis=1)).mean())


def worst_losses(
    before: Logits, after: Logits, labels: Labels, names: Sequence[str], *, count: int = 3
) -> tuple[ClassLoss, ...]:
    """The labels that lost most recall, worst first; at most `count`, and only those that lost any.

    The worst of many labels looks bad by chance alone where a label has few images: read it with its `n`.

    Args:
        before: logits [N, K] of the first classifier.
        after: logits [N, K] of the second one.
        labels: [N], the true labels.
        names: of the K labels.
        count: how many.
    """
    totals = np.bincount(labels, minlength=len(names))
    hits = [np.bincount(labels[logits.argmax(axis=1) == labels], minlength=len(names)) for logits in (before, after)]
    losses = [
        ClassLoss(label=name, n=int(n), before=int(first) / int(n), after=int(second) / int(n))
        for name, n, first, second in zip(names, totals, *hits, strict=True)
        if second < first
    ]
    return tuple(sorted(losses, key=lambda loss: (loss.after - loss.before, -loss.n, loss.label))[:count])
