"""Latencies in a histogram."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.histogram import Latencies


def filled(values):
    kept = Latencies()
    for value in values:
        kept.append(value)
    return kept


def test_percentiles_are_those_of_the_samples_within_a_thousandth():
    values = np.random.default_rng(0).lognormal(2, 1, size=20_000)
    kept = filled(values)
    assert len(kept) == len(values)
    for percent in (50, 90, 99, 99.9):
        exact = np.percentile(values, percent, method="inverted_cdf")
        assert kept.percentile(percent) == pytest.approx(exact, rel=2e-3)
    assert kept.highest == pytest.approx(values.max(), rel=1e-3)


def test_none_have_no_percentiles():
    assert (len(Latencies()), Latencies().highest, Latencies().percentile(99)) == (0, 0.0, 0.0)


def test_what_is_outside_counts_as_the_nearer_end():
    kept = filled([0.0, 120_000.0])
    assert kept.percentile(1) == 0.001
    assert kept.highest == pytest.approx(60_000, rel=1e-3)


@given(st.lists(st.floats(0.001, 60_000), max_size=30), st.lists(st.floats(0.001, 60_000), max_size=30))
def test_halves_that_were_encoded_merge_into_the_whole(first, second):
    merged = Latencies(filled(first).encode())
    merged.merge(Latencies(filled(second).encode()))
    whole = filled(first + second)
    assert len(merged) == len(whole)
    assert all(merged.percentile(percent) == whole.percentile(percent) for percent in (1, 50, 99, 100))


def test_a_million_take_no_more_room_than_a_few():
    few, many = filled([1.0, 2.0, 3.0]), filled([1.0, 2.0, 3.0])
    for _ in range(20):
        many.merge(Latencies(many.encode()))
    assert len(many) == 3 * 2**20
    assert len(many.encode()) < len(few.encode()) + 20
