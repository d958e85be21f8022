"""Intervals of medians and ratios: by hand, seeded, and how often they hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from bench.peers.bootstrap import FEWEST, Ratio, median_interval, ratio, sureness


def test_ratios_are_formed_within_rounds() -> None:
    assert ratio([2.0, 20.0, 9.0], [1.0, 10.0, 1.0]) == Ratio(value=2.0, low=2.0, high=9.0)
    assert ratio([3.0], [2.0]) == Ratio(value=1.5, low=None, high=None)
    with pytest.raises(ValueError, match="zip"):
        ratio([1.0, 2.0], [1.0])


def test_a_drift_that_hits_both_leaves_no_doubt() -> None:
    pace = np.array([1.0, 3.0, 2.0, 5.0, 1.5])
    assert ratio((4 * pace).tolist(), pace.tolist()) == Ratio(value=4.0, low=4.0, high=4.0)


def test_few_rounds_have_a_range() -> None:
    rounds = [3.0, 1.0, 5.0, 2.0, 4.0]
    for count in range(2, FEWEST):
        assert median_interval(rounds[:count]) == (min(rounds[:count]), max(rounds[:count]))
        assert sureness(count) == "range"
    assert median_interval(rounds[:1]) is None
    assert median_interval([2.0, 2.0]) == (2.0, 2.0)


def test_more_rounds_are_drawn_again() -> None:
    low, high = median_interval([*(1.0,) * 10, 100.0]) or (0, 0)
    assert (low, high) == (1.0, 1.0)
    assert median_interval([2.0] * FEWEST) == (2.0, 2.0)
    assert sureness(FEWEST) == "95 % CI"


def test_the_same_durations_give_the_same_interval() -> None:
    rounds = np.random.default_rng(1).lognormal(size=30).tolist()
    assert median_interval(rounds) == median_interval(rounds)


def test_about_as_often_right_as_it_says() -> None:
    random = np.random.default_rng(0)
    truth, held = 1.0, 0
    for _ in range(40):
        low, high = median_interval((truth * random.lognormal(sigma=0.1, size=8)).tolist()) or (0, 0)
        held += low <= truth <= high
    assert 33 <= held <= 40
