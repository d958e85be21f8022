"""Tests of zoo.base.statistics.paired."""

from __future__ import annotations

import math

import pytest

from zoo.base.statistics.paired import paired_difference


def test_by_hand() -> None:
    middle, spread = paired_difference(98, gained=7, lost=2)
    assert middle == pytest.approx(0.05)
    assert spread == pytest.approx(math.sqrt((10 / 100 - 0.05**2) / 100))


def test_no_difference_is_not_certain() -> None:
    middle, spread = paired_difference(10, gained=0, lost=0)
    assert middle == 0
    assert spread == pytest.approx(math.sqrt(1 / 12 / 12))


def test_the_order_of_the_two_is_only_a_sign() -> None:
    one, two = paired_difference(50, gained=3, lost=8), paired_difference(50, gained=8, lost=3)
    assert one == (-two[0], two[1])
