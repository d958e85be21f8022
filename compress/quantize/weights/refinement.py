"""INT8 weights of a QDQ graph, as precise as they can be at no cost while running.

What ONNX Runtime's quantizer leaves to be won: on x86 without VNNI its remedy against saturation takes a bit from every
weight, where only few pairs of neighbours need it, and each weight is rounded for itself instead of for the
layer's output. Only codes, scales and biases change, never the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from compress.quantize.observe import Feed, Feeds, observe
from compress.quantize.qdq_layers import Graph, Layer, layers
from compress.quantize.weights.rounding import compensate, nearest, widest_scales

__all__ = ["refine"]

Floats = npt.NDArray[np.float32]

_SAMPLES_PER_WEIGHT = 4
_SAMPLES = (2048, 8192)
"""Least and most places that a layer's statistics are taken from, over all images."""
_DAMPING = 0.01
"""Least share of the mean power that is added to each input's (Frantar et al. 2022, section 3.3, step 3)."""
_LARGEST_FAN_IN = 8192
"""Wider layers (VGG's first Gemm) are rounded to the nearest: their statistics would take gigabytes."""
_LARGEST_BIAS = 2**30
"""Codes of biases stay below, half of what 32 bits hold: the products need room, too."""


class _Moments:
    """Mean and mean products of a layer's inputs, gathered sample by sample."""

    def __init__(self, groups: int, size: int) -> None:
        self._count = 0
        # Sums are taken of distances to the first batch's mean: large means would drown small deviations.
        self._origin = np.zeros((groups, size), np.float32)
        self._first = np.zeros((groups, size), np.float32)
        self._second = np.zeros((groups, size, size), np.float32)

    def add(self, rows: Floats) -> None:
        """Count samples, [N, G, K]."""
        if not self._count:
            self._origin = rows.mean(axis=0)
        by_group = (rows - self._origin).swapaxes(0, 1)
        self._count += len(rows)
        self._first += by_group.sum(axis=1)
        self._second += by_group.swapaxes(1, 2) @ by_group

    def shrunk(self, *, central: bool) -> Floats:
        """Mean products of inputs, [G, K, K], about their means if a bias takes care of these; positive definite.

        Shrunk towards independent inputs of the same power, the more the fewer samples there are (Chen et al. 2010,
        arXiv 0907.4698, equation 23): on a few hundred, errors would be hidden where those happen not to look.
        """
        shift, mean = self._first / self._count, self._mean()
        out = self._second / self._count - shift[:, :, None] * shift[:, None]
        if not central:
            out += mean[:, :, None] * mean[:, None]
        size = out.shape[1]
        power, square = out.diagonal(axis1=1, axis2=2).sum(axis=1), (out**2).sum(axis=(1, 2))
        wanted = ((1 - 2 / size) * square + power**2) / (self._count + 1 - 2 / size)
        share = np.clip(wanted / np.maximum(square - power**2 / size, 1e-30), _DAMPING, 1)
        target = np.where(power > 0, share * power / size, 1)
        out *= 1 - share[:, None, None]
        return np.asarray(out + target[:, None, None] * np.eye(size, dtype=np.float32), np.float32)

    def outputs(self, weight: Floats) -> Floats:
        """What weights [G, O, K] make of the samples on average, [G, O]."""
        return np.asarray((weight @ self._mean()[..., None])[..., 0])

    def _mean(self) -> Floats:
        return np.asarray(self._origin + self._first / self._count, np.float32)


def refine(
    quantized: ModelProto,
    parent: ModelProto,
    *,
    saturates: bool,
    feeds: Feeds | None = None,
    shift_biases: bool = True,
    seed: int = 0,
) -> ModelProto:
    """Quantize the weights of convolutions and matrix products anew, from the float graph's.

    With inputs, codes are chosen for the least error of the layer's outputs over them, and biases take over what is
    left on average. Without, each is rounded to the nearest.

    Args:
        quantized: as ONNX Runtime's QDQQuantizer makes it, INT8 weights with a scale per channel; not changed. Layers
            of another form stay as they are.
        parent: the float graph it was made from.
        saturates: whether the file is for x86 without VNNI, too, so that no two neighbouring products may exceed 16
            bits (see compress.quantize.weights.rounding). Depthwise kernels add in 32 bits everywhere
            (mlas/lib/qdwconv.cpp and the depthwise part of x86_64/ConvSymKernelAvx2.S in ONNX Runtime 1.31), so their
            weights are not bounded.
        feeds: calibration images, of which the inputs of all layers for one batch are in memory at once.
        shift_biases: whether biases may take over anything; else the codes alone keep the error small.
        seed: draws the places at which the layers' inputs are looked at.

    Returns:
        The refined graph.
    """
    out = ModelProto()
    out.CopyFrom(quantized)
    graph = Graph(out)
    found = layers(graph, Graph(parent))
    # Weights that two layers share would need the statistics of both.
    alone = [layer for layer in found if not layer.shared and layer.fan_in <= _LARGEST_FAN_IN]
    moments = _measure(parent, alone, feeds, np.random.default_rng(seed)) if feeds and alone else {}
    for layer in found:
        pairs = saturates and not layer.depthwise
        _requantize(graph, layer, moments.get(layer.node.name), pairs=pairs, shift_bias=shift_biases)
    return out


def _measure(
    parent: ModelProto, found: Sequence[Layer], feeds: Feeds, random: np.random.Generator
) -> dict[str, _Moments]:
    """Statistics of the layers' inputs in the float graph, by the name of their nodes."""
    # All batches but the last one are alike.
    total = (len(feeds) - 1) * _images(feeds[0]) + _images(feeds[len(feeds) - 1])
    sums = {layer.node.name: _Moments(layer.groups, layer.fan_in) for layer in found}
    for answers in observe(parent, [layer.source for layer in found], feeds, exact=True):
        share = len(next(iter(answers.values()))) / total
        for layer in found:
            count = round(share * float(np.clip(_SAMPLES_PER_WEIGHT * layer.fan_in, *_SAMPLES)))
            sums[layer.node.name].add(layer.sample(answers[layer.source], max(count, 1), random))
    return sums


def _images(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def _requantize(graph: Graph, layer: Layer, moments: _Moments | None, *, pairs: bool, shift_bias: bool) -> None:
    weight = layer.rows(layer.weight)
    scale = np.maximum(widest_scales(weight, pairs=pairs), _least_scales(layer))
    shift = np.zeros(scale.size, np.float32)
    if moments is None:
        codes = nearest(weight, scale, pairs=pairs)
    else:
        shifted = shift_bias and layer.bias is not None
        codes = compensate(weight, scale, moments.shrunk(central=shifted), pairs=pairs)
        if shifted:
            shift = moments.outputs(weight - codes * scale[..., None]).reshape(-1)
    graph.store(layer.codes, np.ascontiguousarray(layer.unrows(codes)).astype(np.int8))
    graph.store(layer.scale, scale.reshape(-1))
    if layer.bias is not None and layer.float_bias is not None:
        layer.store_bias(graph, layer.float_bias + shift, scale.reshape(-1))


def _least_scales(layer: Layer) -> Floats:
    """The smallest scales with which the biases fit their 32 bits, [G, O]."""
    if layer.bias_scale is None or layer.float_bias is None:
        return np.zeros((layer.groups, 1), np.float32)
    least = np.abs(layer.float_bias) / (_LARGEST_BIAS * layer.input_scale)
    return np.asarray(least.reshape(layer.groups, -1), np.float32)
