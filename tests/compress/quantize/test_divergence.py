"""Tests of compress.quantize.divergence."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import rel_entr, softmax

from compress.quantize.divergence import compare, divergence


def test_numbers_of_a_small_example() -> None:
    parent = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.4, 0.1], [0.1, 0.3, 0.6], [0.2, 0.2, 0.6]], np.float32))
    child = parent.copy()
    child[1] = np.log([0.4, 0.5, 0.1])
    found = compare(parent, child, labels=np.array([0, 0, 1, 2]))
    assert (found.n, found.agreement) == (4, 0.75)
    assert found.expected_drop == pytest.approx(100 * 0.1 / 4)
    assert (found.top1_parent, found.top1) == (0.75, 0.5)
    assert found.drop == pytest.approx(25)
    assert found.kl == pytest.approx((0.5 * np.log(0.5 / 0.4) + 0.4 * np.log(0.4 / 0.5)) / 4, rel=1e-5)
    assert found.parity == pytest.approx(np.log(0.5 / 0.4))
    unlabelled = compare(parent, child)
    assert unlabelled.top1 is None
    assert unlabelled.drop == unlabelled.expected_drop == pytest.approx(2.5)


def test_a_temperature_makes_a_change_of_mind_cheaper() -> None:
    parent, child = np.array([[4.0, 0.0]], np.float32), np.array([[0.0, 4.0]], np.float32)
    drops = [compare(parent, child, temperature=temperature).expected_drop for temperature in (1.0, 4.0)]
    assert drops == pytest.approx([100 * np.tanh(2), 100 * np.tanh(0.5)])


def test_divergence_is_scipys() -> None:
    random = np.random.default_rng(0)
    parent, child = (random.normal(size=(20, 7)).astype(np.float32) for _ in range(2))
    wanted = rel_entr(softmax(parent / 2, axis=1), softmax(child / 2, axis=1)).sum(axis=1).mean()
    assert divergence(parent, child, 2.0) == pytest.approx(wanted, rel=1e-5)
    assert divergence(parent, parent) == 0


@pytest.mark.parametrize(("wrong", "told"), [(0, False), (1, False), (30, True)])
def test_a_drop_comes_with_its_interval(wrong: int, told: bool) -> None:
    """Of 100 images that the parent recognises all, the child misses some."""
    parent = np.tile(np.array([[2.0, 0.0]], np.float32), (100, 1))
    child = parent.copy()
    child[:wrong] = child[:wrong, ::-1]
    labelled = compare(parent, child, labels=np.zeros(100, np.int64))
    assert labelled.drop == pytest.approx(wrong)
    assert labelled.low < wrong + 1e-9 and wrong < labelled.high + 1e-9
    assert labelled.told == told
    # Unlabelled: each lost answer counts with what the parent believed of it, tanh(1) here.
    expected = compare(parent, child)
    reach = 1.96 * np.tanh(1.0) * np.sqrt(wrong * (100 - wrong) / 99)
    assert (expected.low, expected.high) == pytest.approx((expected.drop - reach, expected.drop + reach))
