from __future__ import annotations

import numpy as np

from zoo.explain.signed_colours import in_rows, signed


def test_three_channels_are_colours_around_grey() -> None:
    values = np.array([[[-2.0, 0.0]], [[2.0, 9.0]], [[0.0, -1.0]]], dtype=np.float32)
    assert signed(values, 2.0).tolist() == [[[0, 255, 128], [128, 255, 64]]]


def test_one_channel_goes_from_blue_over_white_to_red() -> None:
    ((low, middle, high),) = signed(np.array([[[-1.0, 0.0, 1.0]]], dtype=np.float32), 1.0).astype(int)
    assert low[2] > low[0] + 50 and high[0] > high[2] + 50
    assert middle.min() > 240


def test_nothing_but_zeros_is_the_middle() -> None:
    assert (signed(np.zeros((3, 2, 2), dtype=np.float32), 0.0) == 128).all()


def test_rows() -> None:
    assert in_rows([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]
    assert [len(row) for row in in_rows(list(range(33)))] == [7, 7, 7, 7, 5]
