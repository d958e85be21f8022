"""How far a compressed graph's answers are from its parent's. `N` images, `K` labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoo.artefact.predictor import softmax
from zoo.base.statistics.paired import compare_answers

__all__ = ["Comparison", "compare", "divergence"]

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two graphs' answers to the same images."""

    n: int
    low: float
    high: float
    """95 % interval of `drop` over such images."""
    agreement: float
    """Share of the images on which both answer the same label."""
    expected_drop: float
    """Points of top-1 that the parent expects to lose: the mean difference of its own (calibrated) probabilities of
    both answers. Needs no labels, and moves with every answer that changes, not only with those that become wrong."""
    kl: float
    """Mean KL divergence of the child's probabilities from the parent's, in nats."""
    parity: float
    """Largest difference of two logits."""
    top1_parent: float | None = None
    """Share of right answers; None without labels."""
    top1: float | None = None
    """The child's."""

    @property
    def drop(self) -> float:
        """Points lost: of top-1 where labels are known, else those that are expected."""
        if self.top1 is None or self.top1_parent is None:
            return self.expected_drop
        return 100 * (self.top1_parent - self.top1)

    @property
    def told(self) -> bool:
        """Whether so many images tell the drop, or gain, from nothing."""
        return not self.low <= 0 <= self.high


def compare(
    parent: Logits, child: Logits, *, temperature: float = 1.0, labels: npt.NDArray[np.int64] | None = None
) -> Comparison:
    """Compare logits [N, K] of a parent and its child.

    Args:
        parent: the parent's logits.
        child: the child's logits of the same images.
        temperature: the parent's, by which both are divided before the softmax.
        labels: [N], the true labels; None if they are not known.
    """
    before, after = parent.argmax(axis=1), child.argmax(axis=1)
    rows = np.arange(len(parent))
    probabilities = softmax(parent, temperature).astype(np.float64)
    lost = probabilities[rows, before] - probabilities[rows, after]
    low, high = _expected(lost) if labels is None else _counted(parent, child, labels)
    return Comparison(
        n=len(parent),
        low=low,
        high=high,
        agreement=float((before == after).mean()),
        expected_drop=float(100 * lost.mean()),
        kl=divergence(parent, child, temperature),
        parity=float(np.abs(parent - child).max()),
        top1_parent=None if labels is None else float((before == labels).mean()),
        top1=None if labels is None else float((after == labels).mean()),
    )


def divergence(parent: Logits, child: Logits, temperature: float = 1.0) -> float:
    """Mean over the images of KL(parent || child) after the softmax, in nats; both [N, K]."""
    wanted, given = (_log_softmax(logits.astype(np.float64) / temperature) for logits in (parent, child))
    return float((np.exp(wanted) * (wanted - given)).sum(axis=1).mean())


def _counted(parent: Logits, child: Logits, labels: npt.NDArray[np.int64]) -> tuple[float, float]:
    found = compare_answers(parent, child, labels)
    return 0.0 - found.high, 0.0 - found.low


def _expected(lost: npt.NDArray[np.float64]) -> tuple[float, float]:
    """95 % interval of the mean in points, from the standard error; the whole range of one image."""
    if len(lost) < 2:
        return -100.0, 100.0
    reach = 1.96 * float(lost.std(ddof=1)) / math.sqrt(len(lost))
    return 100 * (float(lost.mean()) - reach), 100 * (float(lost.mean()) + reach)


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
