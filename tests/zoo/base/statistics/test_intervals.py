"""Intervals of medians and ratios: by hand, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.base.statistics.intervals import FEWEST, Ratio, median_interval, ratio, sureness


def test_ratios_are_formed_within_rounds() -> None:
    assert ratio([2.0, 20.0, 9.0], [1.0, 10.0, 1.0]) == Ratio(value=2.0, low=2.0, high=9.0)
    assert ratio([3.0], [2.0]) == Ratio(value=1.5, low=None, high=None)
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])


def test_a_drift_that_hits_both_leaves_no_doubt() -> None:
    pace = [1.0, 3.0, 2.0, 5.0, 1.5]
    assert ratio([4 * value for value in pace], pace) == Ratio(value=4.0, low=4.0, high=4.0)


def test_few_rounds_have_a_range() -> None:
    rounds = [3.0, 1.0, 5.0, 2.0, 4.0]
    for count in range(2, FEWEST):
        assert median_interval(rounds[:count]) == (min(rounds[:count]), max(rounds[:count]))
        assert sureness(count) == "range"
    assert median_interval(rounds[:1]) is None
    assert median_interval([2.0, 2.0]) == (2.0, 2.0)


def test_more_rounds_have_order_statistics() -> None:
    # David & Nagaraja 2003, section 7.1: of six the range (1 - 2 / 64 = 96.9 %), of twelve the third and the tenth.
    assert median_interval([6.0, 1.0, 5.0, 2.0, 4.0, 3.0]) == (1.0, 6.0)
    assert median_interval([float(value) for value in range(12, 0, -1)]) == (3.0, 10.0)
    assert median_interval([*(1.0,) * 10, 100.0]) == (1.0, 1.0)
    assert sureness(FEWEST) == "95 % CI"


def test_at_least_as_often_right_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        low, high = median_interval(random.lognormal(sigma=0.1, size=12).tolist()) or (0, 0)
        held += low <= 1.0 <= high
    assert 185 <= held <= 200
