"""Calibration: the range of every activation that will be quantized, measured on images.

ONNX Runtime's own calibrators with histograms keep every activation of every image in memory and count them with NumPy
(140 s for 256 images of EfficientNet-Lite0, of which the network takes 5). Here a first pass measures the extremes
inside the graph, and where outliers are clipped, a second one counts into bins that are known by then, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData

from compress.quantize.observe import Feed, Feeds, observe
from zoo.artefact.card import Input
from zoo.artefact.preprocess import at_once, batch
from zoo.base.errors import ArtefactError, DataError
from zoo.base.progress import track
from zoo.data.dataset import Sample

__all__ = ["Batches", "Histogram", "activations", "extremes", "histograms", "least_error", "ranges"]

_CACHE_BYTES = 1 << 30
_BINS = 2048
"""On each side of zero."""
_LEVELS = 256
_COUNTED = 1 << 18
"""About how many values of one activation are counted per batch; the extremes are those of all."""


class Batches(Sequence[Feed]):
    """Images as a graph takes them, batch by batch; they are decoded once where all of them fit into memory.

    Args:
        samples: the images.
        spec: the graph's input.
        size: images of a batch, fewer where they are large; see zoo.artefact.preprocess.at_once.
    """

    def __init__(self, samples: Sequence[Sample], spec: Input, *, size: int = 8) -> None:
        self._samples, self._spec, self._size = samples, spec, at_once(spec.size, most=size)
        self._cache: dict[int, Feed] = {}
        self._fits = 4 * len(samples) * int(np.prod(spec.shape)) <= _CACHE_BYTES

    def __len__(self) -> int:
        return -(-len(self._samples) // self._size)

    @overload
    def __getitem__(self, index: int) -> Feed: ...
    @overload
    def __getitem__(self, index: slice) -> list[Feed]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index in self._cache:
            return self._cache[index]
        chosen = self._samples[index * self._size : (index + 1) * self._size]
        feed = {self._spec.name: batch([sample.read() for sample in chosen], self._spec)}
        if self._fits:
            self._cache[index] = feed
        return feed


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """How often an activation took which values."""

    low: float
    """The least value seen."""
    high: float
    """The largest."""
    counts: npt.NDArray[np.float64]
    """[bins] of equal width over [-edge, edge], or over [0, edge] where no value is negative."""

    @property
    def edge(self) -> float:
        """The largest absolute value, where the last bin ends."""
        return max(abs(self.low), abs(self.high))

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of each bin, [bins]."""
        start = -self.edge if self.low < 0 else 0.0
        width = (self.edge - start) / len(self.counts)
        return np.asarray(start + width * (np.arange(len(self.counts)) + 0.5), np.float64)


def ranges(
    model: ModelProto, feeds: Feeds, *, tensors: Iterable[str], clip: bool = False, symmetric: bool = False
) -> TensorsData:
    """What range each activation gets, in the form that ONNX Runtime's quantizers take.

    Args:
        model: float graph.
        feeds: calibration images.
        tensors: names of the activations, float tensors of `model`; see :func:`activations`.
        clip: leave out what is so rare that finer steps for the rest make up for it; else nothing is left out.
        symmetric: both ends get the same distance from zero.

    Raises:
        DataError: no calibration images.
        ArtefactError: an activation is not finite.
    """
    if clip:
        found = {
            name: least_error(histogram, symmetric=symmetric)
            for name, histogram in histograms(model, feeds, tensors).items()
        }
    else:
        found = extremes(model, feeds, tensors)
    if symmetric:
        edges = {name: max(abs(low), abs(high)) for name, (low, high) in found.items()}
        found = {name: (-edge, edge) for name, edge in edges.items()}
    stored = {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high) in found.items()}
    # The quantizer only reads lowest and highest; how they were found does not concern it.
    return TensorsData(CalibrationMethod.MinMax, stored)


def activations(model: ModelProto, nodes: Iterable[NodeProto]) -> list[str]:
    """The float inputs and outputs of some nodes of a graph, constants left out, in the order of the nodes."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats -= {tensor.name for tensor in inferred.initializer}
    return [name for name in dict.fromkeys(n for node in nodes for n in (*node.input, *node.output)) if name in floats]


def extremes(model: ModelProto, feeds: Feeds, tensors: Iterable[str]) -> dict[str, tuple[float, float]]:
    """The least and the largest value of each tensor over all images; errors as :func:`ranges`."""
    if not feeds:
        raise DataError("quantization needs at least one calibration image; name a folder of images with --calibrate")
    names = list(dict.fromkeys(tensors))
    probes = [
        helper.make_node(kind, [name], [f"pocketzoo/{kind}/{name}"], keepdims=0)
        for name in names
        for kind in ("ReduceMin", "ReduceMax")
    ]
    outputs = [node.output[0] for node in probes]
    batches = observe(model, outputs, track(feeds, total=len(feeds), description="Calibrating"), probes=probes)
    table = np.array([[seen[output] for output in outputs] for seen in batches], np.float64)
    found = dict(zip(names, zip(table[:, ::2].min(axis=0), table[:, 1::2].max(axis=0), strict=True), strict=True))
    for name, (low, high) in found.items():
        if not np.isfinite((low, high)).all():
            raise ArtefactError(
                f"the activation {name} reaches {low} to {high} on the calibration images; quantization needs finite "
                "values: look at the images and the preprocessing, or train again"
            )
    return {name: (float(low), float(high)) for name, (low, high) in found.items()}


def histograms(model: ModelProto, feeds: Feeds, tensors: Iterable[str]) -> dict[str, Histogram]:
    """Count the values of each tensor over all images; errors as :func:`ranges`."""
    found = extremes(model, feeds, tensors)
    counts = {name: np.zeros(2 * _BINS if low < 0 else _BINS) for name, (low, _) in found.items()}
    for seen in observe(model, found, track(feeds, total=len(feeds), description="Counting")):
        for name, array in seen.items():
            low, high = found[name]
            edge = max(abs(low), abs(high))
            if edge > 0:
                # An odd step, so that it does not fall on the same column of every row.
                some = array.reshape(-1)[:: array.size // _COUNTED | 1]
                counts[name] += np.histogram(some, len(counts[name]), range=(-edge if low < 0 else 0.0, edge))[0]
    return {name: Histogram(low=low, high=high, counts=counts[name]) for name, (low, high) in found.items()}


def least_error(histogram: Histogram, *, symmetric: bool) -> tuple[float, float]:
    """The range of least expected squared error, of rounding inside and clipping outside together.

    Nagel et al. 2021 (arXiv 2106.08295), section 3.1, equation 11; searched over 71 shares of each end in turn, twice.

    Args:
        histogram: of the activation.
        symmetric: both ends get the same distance from zero.
    """
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    used = histogram.counts > 0
    if not used.any():
        return low, high
    values, weights = histogram.centres[used], histogram.counts[used]
    shares = np.linspace(0.3, 1.0, 71)
    if symmetric:
        errors = [_squared_error(values, weights, -edge, edge) for edge in shares * histogram.edge]
        edge = float(shares[int(np.argmin(errors))] * histogram.edge)
        return -edge, edge
    found = [low, high]
    for _ in range(2):
        highs = shares * high
        found[1] = float(highs[int(np.argmin([_squared_error(values, weights, found[0], end) for end in highs]))])
        lows = shares * low
        found[0] = float(lows[int(np.argmin([_squared_error(values, weights, end, found[1]) for end in lows]))])
    return found[0], found[1]


def _squared_error(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], low: float, high: float) -> float:
    """Sum of weights times (value - quantized value)^2, 256 levels over [low, high] with an exact zero."""
    scale = (high - low) / (_LEVELS - 1)
    if scale == 0:
        return float((weights * values**2).sum())
    zero = np.round(-low / scale)
    levels = np.clip(np.round(values / scale) + zero, 0, _LEVELS - 1)
    return float((weights * (values - (levels - zero) * scale) ** 2).sum())
