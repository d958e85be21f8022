"""Whether the answers of a model still look like those on its validation images.

A change of the images shows in what is predicted, without any true label: fewer or more images of a class, and less
confidence (Rabanser et al., "Failing Loudly", arXiv:1810.11953). `K` is the number of labels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoo.artefact.card import Card

__all__ = ["ENOUGH", "WINDOW", "Drift", "Follower", "class_distance"]

WINDOW = 1000
"""Answers that are looked back at."""
ENOUGH = 100
"""Answers below which nothing is said: the mean confidence of fewer says little."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far the last answers are from the reference in the card."""

    answers: int
    """In the window, ENOUGH to WINDOW."""
    confidence: float
    """Mean confidence now, minus that of the reference: -1 to 1; below 0 the model is less sure than it was."""
    classes: float | None
    """:func:`class_distance`; None where the reference has no predicted classes."""


def class_distance(counts: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """How far apart two histograms of predicted classes are: 0 (no more than by chance) to 1 (nothing in common).

    It is (d - c) / (1 - c), or 0 if d < c. d is the total variation distance, half the sum of |p - q| (Levin and Peres,
    "Markov Chains and Mixing Times", 2nd ed., section 4.1), and c its mean where both are samples of one distribution:
    without that, a thousand answers in a thousand classes would be 0.4 off for no reason. c is half the sum of the
    classes' mean absolute deviations: s sqrt(2 / pi) each, as for a normal variable with the deviation s, and at most
    twice the class's share.

    Args:
        counts: answers per class, [K], not all zero.
        reference: images per class, [K], not all zero.
    """
    now, then = np.asarray(counts, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    n, m = now.sum(), then.sum()
    share = (now + then) / (n + m)
    deviation = np.sqrt(share * (1 - share) * (1 / n + 1 / m) * 2 / math.pi)
    chance = np.minimum(deviation, 2 * share).sum() / 2
    distance = np.abs(now / n - then / m).sum() / 2
    return max(0.0, float((distance - chance) / (1 - chance))) if chance < 1 else 0.0


class Follower:
    """The drift of what answers under one name.

    The version that answered last is followed: one that takes its place begins anew. Not for several threads at once.
    """

    def __init__(self) -> None:
        self._card: Card | None = None
        self._digest: str | None = None
        self._window: deque[tuple[int, float]] = deque(maxlen=WINDOW)

    def add(self, digest: str, card: Card, answers: Iterable[tuple[int, float]]) -> None:
        """Take in answers of one version: the index of the predicted class, and its calibrated probability.

        Args:
            digest: what tells versions apart.
            card: the version's.
            answers: in the order in which they were given.
        """
        if digest != self._digest:
            self._digest, self._card = digest, card
            self._window.clear()
        self._window.extend(answers)

    @property
    def answers(self) -> int:
        """Answers in the window, of the version that is followed; 0 to WINDOW."""
        return len(self._window)

    def drift(self) -> Drift | None:
        """The drift; None before ENOUGH answers, and where the card has no reference."""
        if self._card is None or (reference := self._card.use.reference) is None or self.answers < ENOUGH:
            return None
        classes, confidences = zip(*self._window, strict=True)
        counts = np.bincount(classes, minlength=len(self._card.use.labels))
        expected = [reference.histogram.get(label, 0) for label in self._card.use.labels]
        return Drift(
            answers=self.answers,
            confidence=math.fsum(confidences) / self.answers - reference.mean_confidence,
            classes=class_distance(counts, expected) if any(expected) else None,
        )
