"""Tests of compress.quantize.weights.rounding."""

from __future__ import annotations

from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.quantize.weights.rounding import PAIR_LIMIT, _shares, compensate, nearest, widest_scales

Floats = npt.NDArray[np.float32]

WEIGHTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 9)),
    elements=st.floats(-1, 1, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6),
)


def saturating(codes: npt.NDArray[Any], inputs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The sum over K as vpmaddubsw and vpmaddwd compute it: [..., K], uint8 [K]."""
    odd = [(0, 0)] * (codes.ndim - 1) + [(0, codes.shape[-1] % 2)]
    products = np.pad(codes.astype(np.int64), odd) * np.pad(inputs.astype(np.int64), (0, len(inputs) % 2))
    pairs = products.reshape(*products.shape[:-1], -1, 2).sum(axis=-1)
    total: npt.NDArray[np.int64] = pairs.clip(-(2**15), 2**15 - 1).sum(axis=-1)
    return total


def covariance(size: int, *, groups: int = 1, seed: int = 0) -> Floats:
    samples = np.random.default_rng(seed).standard_normal((groups, 4 * size, size))
    mixed = samples @ np.random.default_rng(seed + 1).standard_normal((size, size))
    return (mixed.swapaxes(1, 2) @ mixed / len(samples[0]) + 0.01 * np.eye(size)).astype(np.float32)


def loss(weight: Floats, codes: Floats, scale: Floats, moment: Floats) -> float:
    difference = weight - codes * scale[..., None]
    return float(((difference @ moment) * difference).sum())


@given(WEIGHTS)
def test_no_pair_saturates_whatever_the_inputs(weight: Floats) -> None:
    scale = widest_scales(weight, pairs=True)
    for codes in (
        nearest(weight, scale, pairs=True),
        nearest(weight, scale * np.float32(0.3), pairs=True),
        compensate(weight, scale, covariance(weight.shape[2], groups=weight.shape[0]), pairs=True),
        compensate(weight, scale * np.float32(0.3), covariance(weight.shape[2], groups=weight.shape[0]), pairs=True),
    ):
        assert np.array_equal(codes, np.rint(codes))
        assert np.abs(codes).max() <= 127
        brightest = np.full(weight.shape[2], 255)
        for inputs in (brightest, brightest * (np.arange(len(brightest)) % 2), np.arange(len(brightest)) * 28 % 256):
            assert np.array_equal(saturating(codes, inputs), (codes * inputs).sum(axis=-1))


def test_eight_unbounded_bits_do_saturate() -> None:
    weight = np.array([[[1.0, 0.9, -1.0, -0.9]]], np.float32)
    codes = nearest(weight, widest_scales(weight, pairs=False), pairs=False)
    assert codes.tolist() == [[[127, 114, -127, -114]]]
    inputs = np.array([255, 255, 0, 0])
    assert saturating(codes, inputs).tolist() == [[32767]]
    assert (codes * inputs).sum() == 61455


@given(WEIGHTS)
def test_never_coarser_than_seven_bits(weight: Floats) -> None:
    scale = widest_scales(weight, pairs=True)
    largest = np.abs(weight).max(axis=-1)
    assert (scale[largest > 0] <= largest[largest > 0] / 63.99).all()
    error = np.abs(weight - nearest(weight, scale, pairs=True) * scale[..., None])
    # Half a step; a whole one where both of a pair at the limit would round up.
    assert (error <= scale[..., None] * 1.001).all()
    assert (error.mean(axis=-1) <= scale * 0.7).all()


def test_weights_as_networks_have_them_gain_half_a_bit_and_more() -> None:
    weight = np.random.default_rng(0).standard_normal((1, 64, 256)).astype(np.float32)
    scale, seven = widest_scales(weight, pairs=True), np.abs(weight).max(axis=-1) / np.float32(64)
    errors = [
        ((weight - nearest(weight, steps, pairs=pairs) * steps[..., None]) ** 2).mean()
        for steps, pairs in ((scale, True), (seven, False))
    ]
    assert errors[0] < errors[1] / 2


def test_only_neighbours_from_the_start_are_pairs() -> None:
    weight = np.array([[[0.1, 1.0, 1.0, 0.0, 1.0]]], np.float32)
    scale = widest_scales(weight, pairs=True)
    assert scale[0, 0] == pytest.approx(1.1 / 128)
    assert nearest(weight, scale, pairs=True).tolist() == [[[12, 116, 116, 0, 116]]]


def test_a_pair_beyond_the_limit_shares_the_excess() -> None:
    weight = np.array([[[100, 80, -100, -80, 100, -80]]], np.float32)
    codes = nearest(weight, np.ones((1, 1), np.float32), pairs=True)
    assert codes.tolist() == [[[74, 54, -74, -54, 100, -80]]]
    assert codes[0, 0, :2].sum() == PAIR_LIMIT


def test_zero_channels_are_zeros() -> None:
    weight = np.zeros((1, 2, 4), np.float32)
    scale = widest_scales(weight, pairs=True)
    assert scale.tolist() == [[1, 1]]
    assert not compensate(weight, scale, covariance(4), pairs=True).any()


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("groups", "size", "share"), [(1, 151, 0.5), (5, 9, 0.75)])
def test_compensation_lowers_the_error_of_the_outputs(groups: int, size: int, share: float, pairs: bool) -> None:
    weight = np.random.default_rng(3).standard_normal((groups, 12, size)).astype(np.float32)
    moment = np.concatenate([covariance(size, seed=seed) for seed in range(groups)])
    scale = widest_scales(weight, pairs=pairs)
    plain = loss(weight, nearest(weight, scale, pairs=pairs), scale, moment)
    compensated = compensate(weight, scale, moment, pairs=pairs)
    assert loss(weight, compensated, scale, moment) < plain * share


def test_independent_inputs_need_no_compensation() -> None:
    weight = np.random.default_rng(3).standard_normal((1, 4, 70)).astype(np.float32)
    moment = np.diag(np.arange(1, 71)).astype(np.float32)[None]
    scale = widest_scales(weight, pairs=True)
    assert np.array_equal(compensate(weight, scale, moment, pairs=True), nearest(weight, scale, pairs=True))


def test_shares_leave_parts_that_are_independent() -> None:
    moment = np.concatenate([covariance(6, seed=seed) for seed in range(3)])
    shares = _shares(moment)
    assert np.array_equal(shares, np.triu(shares)) and (shares.diagonal(axis1=1, axis2=2) == 1).all()
    apart = np.linalg.inv(shares)
    powers = apart @ moment @ apart.swapaxes(1, 2)
    assert (powers.diagonal(axis1=1, axis2=2) > 0).all()
    assert np.allclose(powers, powers * np.eye(6), atol=1e-4 * powers.max())
