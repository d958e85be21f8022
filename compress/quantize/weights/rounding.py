"""Float weights to 8-bit codes: scales, rounding that compensates, and pairs that cannot saturate.

x86 without VNNI multiplies unsigned activations with signed weights by `vpmaddubsw`, which adds the products of two
neighbours along K in 16 bits with saturation: 255 * (a + b) must stay within -32768 and 32767, so a + b within -128
and 128. ONNX Runtime's remedy, weights of 7 bits, obeys that for any neighbours; here only pairs that would
saturate are bounded, and the others use all 8 bits. MLAS packs K in fours from its start (x86_64/QgemmU8X8KernelAvx2.S
and ConvSymKernelAvx2.S in ONNX Runtime 1.31), so the pairs are (0, 1), (2, 3), ...

Notation: G groups, O output channels of one group, K weights of one output channel.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["PAIR_LIMIT", "compensate", "nearest", "widest_scales"]

Floats = npt.NDArray[np.float32]

PAIR_LIMIT = 128
"""The largest magnitude of the sum of two neighbouring codes: floor(32767 / 255)."""

_LARGEST = 127
_BLOCK = 64
"""Columns that are rounded between two matrix products; even, so that it splits no pair."""


def widest_scales(weight: Floats, *, pairs: bool) -> Floats:
    """Per output channel the smallest scale with which nothing is clipped, [G, O]; 1 for channels of zeros.

    Smaller ones that clip a few weights were tried, by least squared error of weights or of outputs: no better at 8
    bits.

    Args:
        weight: [G, O, K].
        pairs: also bound no pair; see the module.
    """
    scale = np.abs(weight).max(axis=-1) / _LARGEST
    if pairs:
        total = np.abs(_paired(weight).sum(axis=-1)).max(axis=-1, initial=0)
        scale = np.maximum(scale, total / PAIR_LIMIT)
    return np.asarray(np.where(scale > 0, scale, 1), np.float32)


def nearest(weight: Floats, scale: Floats, *, pairs: bool) -> Floats:
    """The nearest codes, whole numbers [G, O, K].

    Args:
        weight: [G, O, K].
        scale: [G, O].
        pairs: bound sums of neighbours.
    """
    codes: Floats = np.rint(weight / scale[..., None]).clip(-_LARGEST, _LARGEST)
    if pairs:
        couples = _paired(codes)
        couples[..., 0] = np.rint(_bounded(couples))
        couples[..., 1] = _within(couples[..., 1], couples[..., 0])
    return codes


def _paired(values: Floats) -> Floats:
    """A view [..., K // 2, 2]; a last one without a partner is left out."""
    even = values[..., : values.shape[-1] // 2 * 2]
    return even.reshape(*values.shape[:-1], -1, 2)


def _bounded(couples: Floats) -> Floats:
    """The first of each pair [..., 2], less its half of what the sum is beyond the limit."""
    couples = couples.clip(-_LARGEST, _LARGEST)
    total = couples.sum(axis=-1)
    return np.asarray(couples[..., 0] - (total - total.clip(-PAIR_LIMIT, PAIR_LIMIT)) / 2)


def _within(codes: Floats, partner: Floats) -> Floats:
    """Codes moved into what their partners leave."""
    return np.clip(codes, np.maximum(-_LARGEST, -PAIR_LIMIT - partner), np.minimum(_LARGEST, PAIR_LIMIT - partner))


def compensate(weight: Floats, scale: Floats, moment: Floats, *, pairs: bool) -> Floats:
    """Codes of least output error, found column by column: whole numbers [G, O, K].

    Each column is rounded with what makes up for the errors of those before it: GPTQ (Frantar et al. 2022, arXiv
    2210.17323) in the form of LDLQ (Chee et al. 2023, arXiv 2307.13304), which needs no inverse of the moment. Here the
    columns are taken in pairs, those with the most power first.

    Args:
        weight: [G, O, K].
        scale: [G, O].
        moment: [G, K, K], mean products of the inputs, symmetric and positive definite.
        pairs: bound sums of neighbours.
    """
    size = weight.shape[-1]
    power = moment.diagonal(axis1=1, axis2=2).mean(axis=0)
    order = _by_power(power) if pairs else np.argsort(-power, kind="stable")
    wanted = (weight / scale[..., None])[..., order]
    rest = wanted.copy()
    shares = _shares(moment[:, order][:, :, order])
    codes = np.zeros_like(rest)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        for k in range(start, stop):
            codes[..., k] = _choose(rest, codes, k, pairs=pairs)
            error = wanted[..., k, None] - codes[..., k, None]
            rest[..., k + 1 : stop] += error * shares[:, None, k, k + 1 : stop]
        errors = wanted[..., start:stop] - codes[..., start:stop]
        rest[..., stop:] += errors @ shares[:, start:stop, stop:]
    return codes[..., np.argsort(order)]


def _by_power(power: Floats) -> npt.NDArray[np.int64]:
    """An order of the columns that keeps pairs together; one without a partner is the last."""
    even = len(power) // 2 * 2
    pairs = np.argsort(-power[:even].reshape(-1, 2).sum(axis=1), kind="stable")
    return np.concatenate([(pairs[:, None] * 2 + np.arange(2)).reshape(-1), np.arange(even, len(power))])


def _choose(rest: Floats, codes: Floats, k: int, *, pairs: bool) -> Floats:
    """Codes [G, O] of one column."""
    if pairs and k % 2:
        return _within(np.rint(rest[..., k]), codes[..., k - 1])
    alone = not pairs or k + 1 == rest.shape[-1]
    value = rest[..., k] if alone else _bounded(rest[..., k : k + 2])
    return np.clip(np.rint(value), -_LARGEST, _LARGEST)


def _shares(moment: Floats) -> Floats:
    """How much of an earlier column's error a later one makes up for, above the diagonal: [G, K, K]."""
    # With rows and columns reversed, the lower factor L of M = L L^T is an upper one.
    upper = np.linalg.cholesky(moment[:, ::-1, ::-1].astype(np.float64))[:, ::-1, ::-1]
    return np.asarray(upper / upper.diagonal(axis1=1, axis2=2)[:, None], np.float32)
