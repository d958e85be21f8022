"""Two classifiers on the same images, against numbers made by hand and against scipy's bootstrap."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, bootstrap

from zoo.base.statistics.paired import ClassLoss, agreement, compare_answers, worst_losses


def answers(labels: list[int], classes: int = 3) -> npt.NDArray[np.float32]:
    """Logits whose greatest is at the given labels."""
    return np.eye(classes, dtype=np.float32)[labels]


TRUTH = np.array([0] * 4 + [1] * 4 + [2] * 2)
BEFORE = answers([0, 0, 0, 0, 1, 1, 1, 0, 2, 2])  # 9 right
AFTER = answers([0, 0, 0, 1, 1, 0, 0, 1, 2, 0])  # 4 lost, 1 gained


def test_the_difference_by_hand() -> None:
    found = compare_answers(BEFORE, AFTER, TRUTH)
    assert (found.n, found.gained, found.lost) == (10, 1, 4)
    assert found.points == pytest.approx(-30)
    # Agresti & Min 2005: (c - b) / (n + 2) -+ 1.96 sqrt(b + c + 1 - (c - b)^2 / (n + 2)) / (n + 2)
    reach = 1.959964 * np.sqrt(6 - 9 / 12) / 12
    assert (found.low, found.high) == pytest.approx((100 * (-3 / 12 - reach), 100 * (-3 / 12 + reach)), rel=1e-6)
    assert found.p == pytest.approx(binomtest(1, 5).pvalue)
    assert found.p == pytest.approx(2 * (1 + 5) / 32)


def test_the_interval_is_about_scipys_bootstrap() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 3, 1000)
    before, after = (
        answers(np.where(random.random(1000) < share, truth, (truth + 1) % 3).tolist()) for share in (0.9, 0.86)
    )
    found = compare_answers(before, after, truth)
    change = (after.argmax(1) == truth).astype(float) - (before.argmax(1) == truth)
    again = bootstrap((change,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
    assert (found.low, found.high) == pytest.approx((100 * again.low, 100 * again.high), abs=0.15)


def test_nothing_changed() -> None:
    found = compare_answers(BEFORE, BEFORE, TRUTH)
    assert (found.gained, found.lost, found.points, found.p) == (0, 0, 0.0, 1.0)
    # Ten images cannot show that there is no difference at all.
    assert (found.low, found.high) == pytest.approx((-100 * 1.959964 / 12, 100 * 1.959964 / 12), rel=1e-6)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60))
def test_the_interval_holds_the_difference_and_swapping_mirrors_it(images: list[tuple[int, int, int]]) -> None:
    first, second, truth = (np.array(column) for column in zip(*images, strict=True))
    there, back = (
        compare_answers(answers(a.tolist()), answers(b.tolist()), truth) for a, b in ((first, second), (second, first))
    )
    assert -100 <= there.low <= there.points <= there.high <= 100
    assert (back.points, back.low, back.high) == pytest.approx((-there.points, -there.high, -there.low))
    assert 0 < there.p <= 1


def test_agreement_counts_equal_answers_whether_right_or_wrong() -> None:
    assert agreement(BEFORE, AFTER) == pytest.approx(0.5)


def test_the_classes_that_lost_most_by_hand() -> None:
    losses = worst_losses(BEFORE, AFTER, TRUTH, ("cat", "dog", "hen"))
    assert losses == (
        ClassLoss(label="hen", n=2, before=1.0, after=0.5),
        ClassLoss(label="cat", n=4, before=1.0, after=0.75),
        ClassLoss(label="dog", n=4, before=0.75, after=0.5),
    )
    assert worst_losses(BEFORE, AFTER, TRUTH, ("cat", "dog", "hen"), count=1) == losses[:1]
    assert worst_losses(AFTER, BEFORE, TRUTH, ("cat", "dog", "hen")) == ()
