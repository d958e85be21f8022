"""Calibration: the range of every activation that will be quantized, measured on images.

ONNX Runtime's own calibrators for entropy and percentile keep every activation of every image in memory and count
them with NumPy (140 s for 256 images of EfficientNet-Lite0, of which the network takes 5); its entropy has as many
bins as levels, so that it has nothing to choose from. Here a first pass measures the extremes inside the graph, a
second one counts into bins that are known by then, batch by batch; every method reads the same histograms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorsData

from zoo.card import Input
from zoo.datasets.base import Sample
from zoo.errors import ArtefactError, DataError, unknown_name
from zoo.image import batch
from zoo.machine import cores
from zoo.progress import track

__all__ = [
    "CALIBRATIONS",
    "Batches",
    "Feeds",
    "Histogram",
    "activations",
    "extremes",
    "histograms",
    "ranges",
    "session",
]

Feeds = Sequence[Mapping[str, npt.NDArray[np.float32]]]
"""Batches of preprocessed images: input name -> float32 [B, C, H, W]."""

_CACHE_BYTES = 1 << 30
_BINS = 2048
"""On each side of zero."""
_PERCENTILE = 99.999
"""Share of the values, in per cent, that the method `percentile` leaves inside."""
_LEVELS = 256
_COUNTED = 1 << 18
"""About how many values of one activation are counted per batch; the extremes are those of all."""


class Batches(Sequence[Mapping[str, npt.NDArray[np.float32]]]):
    """Images as a graph takes them, batch by batch; they are decoded once where all of them fit into memory."""

    def __init__(self, samples: Sequence[Sample], spec: Input, *, size: int = 8) -> None:
        self._samples, self._spec, self._size = samples, spec, size
        self._cache: dict[int, Mapping[str, npt.NDArray[np.float32]]] = {}
        self._fits = 4 * len(samples) * int(np.prod(spec.shape)) <= _CACHE_BYTES

    def __len__(self) -> int:
        return -(-len(self._samples) // self._size)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, npt.NDArray[np.float32]]: ...
    @overload
    def __getitem__(self, index: slice) -> list[Mapping[str, npt.NDArray[np.float32]]]: ...
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


Choice = Callable[[Histogram, bool], tuple[float, float]]
"""From a histogram, and whether the range has to be symmetric, to the range that is quantized."""


def ranges(
    model: ModelProto, feeds: Feeds, method: str = "minmax", *, tensors: Iterable[str], symmetric: bool = False
) -> TensorsData:
    """What range each activation gets, in the form that ONNX Runtime's quantizers take.

    Args:
        model: float graph.
        feeds: calibration images.
        method: a key of CALIBRATIONS.
        tensors: names of the activations, float tensors of `model`; see :func:`activations`.
        symmetric: both ends get the same distance from zero.

    Raises:
        UsageError: unknown method.
        DataError: no calibration images.
        ArtefactError: an activation is not finite.
    """
    if method not in CALIBRATIONS:
        raise unknown_name("calibration method", method, CALIBRATIONS)
    if method == "minmax":
        found = {
            name: _both_sides((low, high), symmetric) for name, (low, high) in extremes(model, feeds, tensors).items()
        }
    else:
        choose = CALIBRATIONS[method]
        found = {
            name: _both_sides(choose(histogram, symmetric), symmetric)
            for name, histogram in histograms(model, feeds, tensors).items()
        }
    stored = {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high) in found.items()}
    # The quantizer only reads lowest and highest; how they were found does not concern it.
    return TensorsData(CalibrationMethod.MinMax, stored)


def activations(model: ModelProto, op_types: Iterable[str]) -> list[str]:
    """The float inputs and outputs of all nodes of some types, constants left out, in the graph's order."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats -= {tensor.name for tensor in inferred.initializer}
    wanted = set(op_types)
    nodes = [node for node in inferred.node if node.op_type in wanted]
    return [name for name in dict.fromkeys(n for node in nodes for n in (*node.input, *node.output)) if name in floats]


def session(model: ModelProto) -> ort.InferenceSession:
    """Run a graph that is not an artefact (yet) on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def extremes(model: ModelProto, feeds: Feeds, tensors: Iterable[str]) -> dict[str, tuple[float, float]]:
    """The least and the largest value of each tensor over all images; errors as :func:`ranges`."""
    _check(feeds)
    names = list(dict.fromkeys(tensors))
    probed = ModelProto()
    probed.CopyFrom(model)
    outputs = []
    for index, name in enumerate(names):
        for kind in ("ReduceMin", "ReduceMax"):
            output = f"pocketzoo/{kind}/{index}"
            probed.graph.node.append(helper.make_node(kind, [name], [output], keepdims=0))
            probed.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, []))
            outputs.append(output)
    runner = session(probed)
    seen = [runner.run(outputs, dict(feed)) for feed in track(feeds, total=len(feeds), description="Calibrating")]
    table = np.array(seen, np.float64).reshape(len(feeds), len(names), 2)
    found = {
        name: (float(table[:, index, 0].min()), float(table[:, index, 1].max())) for index, name in enumerate(names)
    }
    for name, (low, high) in found.items():
        if not np.isfinite((low, high)).all():
            raise ArtefactError(
                f"the activation {name} reaches {low} to {high} on the calibration images; quantization needs finite "
                "values: look at the images and the preprocessing, or train again"
            )
    return found


def histograms(model: ModelProto, feeds: Feeds, tensors: Iterable[str]) -> dict[str, Histogram]:
    """Count the values of each tensor over all images; errors as :func:`ranges`."""
    found = extremes(model, feeds, tensors)
    probed = ModelProto()
    probed.CopyFrom(model)
    given = {value.name for value in probed.graph.input}
    known = {value.name for value in probed.graph.output}
    inner = [name for name in found if name not in given]
    probed.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inner if name not in known
    )
    counts = {name: np.zeros(2 * _BINS if low < 0 else _BINS) for name, (low, _) in found.items()}
    runner = session(probed)
    for feed in track(feeds, total=len(feeds), description="Counting"):
        # Asked for no outputs, ONNX Runtime returns all.
        seen = runner.run(inner, dict(feed)) if inner else []
        values = dict(zip(inner, seen, strict=True)) | {name: feed[name] for name in given & set(found)}
        for name, array in values.items():
            low, high = found[name]
            edge = max(abs(low), abs(high))
            if edge > 0:
                # An odd step, so that it does not fall on the same column of every row.
                some = array.reshape(-1)[:: array.size // _COUNTED | 1]
                counts[name] += np.histogram(some, len(counts[name]), range=(-edge if low < 0 else 0.0, edge))[0]
    return {name: Histogram(low=low, high=high, counts=counts[name]) for name, (low, high) in found.items()}


def _check(feeds: Feeds) -> None:
    if not feeds:
        raise DataError("quantization needs at least one calibration image; name a folder of pictures with --calibrate")


def _both_sides(found: tuple[float, float], symmetric: bool) -> tuple[float, float]:
    low, high = found
    edge = max(abs(low), abs(high))
    return (-edge, edge) if symmetric else (low, high)


def _minmax(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    return histogram.low, histogram.high


def _percentile(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """Leave the same share of the values out at both ends, to the resolution of the bins."""
    total = histogram.counts.sum()
    if not total:
        return histogram.low, histogram.high
    below = np.cumsum(histogram.counts) / total
    cut = (1 - _PERCENTILE / 100) / 2
    centres = histogram.centres
    half = (centres[1] - centres[0]) / 2
    low = centres[int(np.searchsorted(below, cut))] - half
    high = centres[min(int(np.searchsorted(below, 1 - cut)), len(centres) - 1)] + half
    return max(float(low), histogram.low), min(float(high), histogram.high)


def _entropy(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """The threshold of least KL divergence between the absolute values and what the levels make of them.

    Migacz 2017, "8-bit inference with TensorRT" (GTC), slides 20 to 28. As in NVIDIA's later calibrators the bin at
    zero counts as much as its neighbour: zero has a level of its own, and rectifiers would drown all else in it.
    """
    one_sided = histogram.low >= 0 and not symmetric
    counts = histogram.counts
    if histogram.low < 0:
        counts = counts[_BINS:] + counts[:_BINS][::-1]
    counts = counts.copy()
    counts[0] = counts[1]
    levels = _LEVELS if one_sided else _LEVELS // 2
    if not counts.any():
        return histogram.low, histogram.high
    # Counts beyond the last value seen are all zero, but no range ends there.
    candidates = np.arange(levels, _BINS + 1, 8)
    losses = [_divergence(counts, int(kept), levels) for kept in candidates]
    threshold = float(candidates[int(np.argmin(losses))]) / _BINS * histogram.edge
    return max(histogram.low, -threshold), min(histogram.high, threshold)


def _divergence(counts: npt.NDArray[np.float64], kept: int, levels: int) -> float:
    """KL divergence of the first `kept` bins, the rest clipped into the last of them, from their `levels` averages."""
    inside = counts[:kept]
    wanted = inside.copy()
    wanted[-1] += counts[kept:].sum()
    filled = (inside > 0).astype(np.float64)
    starts = np.arange(levels) * kept // levels
    sizes = np.diff(np.append(starts, kept))
    sums, places = np.add.reduceat(inside, starts), np.add.reduceat(filled, starts)
    means = np.divide(sums, places, out=np.zeros(levels), where=places > 0)
    given = np.repeat(means, sizes) * filled
    total, mass = wanted.sum(), given.sum()
    if total == 0 or mass == 0:
        return float("inf")
    p = wanted / total
    # A bin that only holds what was clipped has no average; it counts as nearly empty rather than impossible.
    q = np.maximum(given / mass, 1e-9)
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


def _mse(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """The range of least expected squared error, of rounding inside and clipping outside together.

    Nagel et al. 2021 (arXiv 2106.08295), section 3.1, equation 11; searched over 71 shares of each end in turn, twice.
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


CALIBRATIONS: dict[str, Choice] = {
    "minmax": _minmax,
    "entropy": _entropy,
    "percentile": _percentile,
    "mse": _mse,
}
"""Method -> how it chooses a range."""
