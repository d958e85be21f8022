"""Sizes as they are typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.base.errors import UsageError
from zoo.base.size import height_and_width, parse_size

EDGES = st.integers(1, 99_999)


@given(EDGES, EDGES, st.sampled_from(["{}x{}", "{}X{}", "{} x {}", "{} {}", "{},{}", "[{}, {}]", "[{},{}]", "{}×{}"]))
def test_height_and_width_in_every_way_of_writing(height, width, written):
    assert parse_size(written.format(height, width)) == height_and_width((height, width)) == (height, width)


@given(EDGES)
def test_one_edge_is_a_square(edge):
    assert parse_size(f" {edge} ") == edge
    assert height_and_width(edge) == (edge, edge)


@pytest.mark.parametrize("text", ["", "big", "-3", "32x", "x32", "3.5", "32x48x3", "1e3", "32px"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match=r"--size: expected an edge or HEIGHTxWIDTH in pixels, like 224 or 224x320"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0", "0x4", "4x0"])
def test_edges_are_positive(text):
    with pytest.raises(UsageError, match=r"size must be at least 1, got .*0"):
        parse_size(text, where="size")
