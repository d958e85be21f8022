"""Tests of compress.quantize.calibration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.quantize import calibration
from compress.quantize.calibration import (
    Batches,
    Histogram,
    activations,
    extremes,
    histograms,
    least_error,
    ranges,
)
from tests.zoo.factories import make_input, make_samples
from zoo.artefact.preprocess import preprocess
from zoo.base.errors import ArtefactError, DataError


def _graph() -> onnx.ModelProto:
    """x -> 2 x -> rectifier; and an integer sum, which is nothing to quantize."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "two"], ["double"], name="mul"),
            helper.make_node("Relu", ["double"], ["y"], name="relu"),
            helper.make_node("Shape", ["x"], ["shape"], name="shape"),
            helper.make_node("Add", ["shape", "shape"], ["sum"], name="add"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1000])],
        [numpy_helper.from_array(np.float32(2), "two")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _feeds(*, outlier: float = 0.0, batches: int = 3) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((4, 1000)).astype(np.float32)} for _ in range(batches)]
    if outlier:
        feeds[-1]["x"][0, 0] = outlier
    return feeds


def _both(found: object, name: str) -> tuple[float, float]:
    low, high = found[name].range_value  # type: ignore[index]
    return float(low), float(high)


def _histogram(values: np.ndarray) -> Histogram:
    low, high = float(values.min()), float(values.max())
    edge = max(abs(low), abs(high))
    bins = (2 if low < 0 else 1) * calibration._BINS
    counts = np.histogram(values, bins, range=(-edge if low < 0 else 0.0, edge))[0].astype(np.float64)
    return Histogram(low=low, high=high, counts=counts)


def _error(values: np.ndarray, low: float, high: float) -> float:
    low, high = min(low, 0), max(high, 0)
    scale = (high - low) / 255
    zero = round(-low / scale)
    return float(np.square(values - (np.clip(np.round(values / scale) + zero, 0, 255) - zero) * scale).mean())


def test_activations_are_the_float_tensors_that_are_not_constant() -> None:
    graph = _graph()
    assert activations(graph, graph.graph.node) == ["x", "double", "y"]
    assert activations(graph, [node for node in graph.graph.node if node.op_type == "Relu"]) == ["double", "y"]


def test_extremes_are_those_of_all_batches() -> None:
    feeds = _feeds()
    values = np.concatenate([feed["x"] for feed in feeds])
    found = extremes(_graph(), feeds, ["x", "double", "y"])
    assert found["x"] == (values.min(), values.max())
    assert found["double"] == (2 * values.min(), 2 * values.max())
    assert found["y"] == (0.0, 2 * values.max())


def test_histograms_count_inputs_inner_tensors_and_outputs() -> None:
    feeds = _feeds()
    found = histograms(_graph(), feeds, ["x", "double", "y"])
    values = np.concatenate([feed["x"] for feed in feeds])
    assert {name: entry.counts.sum() for name, entry in found.items()} == {"x": 12000, "double": 12000, "y": 12000}
    assert np.array_equal(found["x"].counts, found["double"].counts)
    assert (len(found["x"].counts), len(found["y"].counts)) == (2 * calibration._BINS, calibration._BINS)
    mean = float((found["y"].centres * found["y"].counts).sum() / 12000)
    assert mean == pytest.approx(np.maximum(2 * values, 0).mean(), abs=2e-3)


def test_large_tensors_are_counted_in_part_but_their_extremes_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_COUNTED", 100)
    found = histograms(_graph(), _feeds(outlier=50.0), ["x"])["x"]
    assert 3 * 90 < found.counts.sum() < 3 * 110
    assert found.high == 50


@pytest.mark.parametrize("clip", [False, True])
def test_ranges_stay_within_the_extremes_and_know_every_tensor(clip: bool) -> None:
    feeds = _feeds(outlier=40.0)
    found = ranges(_graph(), feeds, tensors=["x", "y"], clip=clip)
    assert set(found.keys()) == {"x", "y"}
    low, high = _both(found, "x")
    least = min(feed["x"].min() for feed in feeds)
    assert least - 1e-6 <= low < 0 < high <= 40
    assert _both(found, "y")[0] == 0
    assert (high < 40) == clip


@pytest.mark.parametrize("clip", [False, True])
def test_symmetric_ranges_are_symmetric(clip: bool) -> None:
    low, high = _both(ranges(_graph(), _feeds(), tensors=["x"], clip=clip, symmetric=True), "x")
    assert low == -high < -1


def test_the_least_error_is_as_good_as_trying_every_range() -> None:
    values = np.append(np.random.default_rng(0).laplace(size=200_000), 30.0)
    found = _histogram(values)
    low, high = least_error(found, symmetric=False)
    tried = min(
        _error(values, a * found.low, b * found.high) for a in np.arange(0.3, 1.01, 0.05) for b in (0.4, 0.6, 0.8, 1)
    )
    assert _error(values, low, high) <= 1.02 * tried
    assert _error(values, low, high) < 0.8 * _error(values, found.low, found.high)


def test_nothing_is_clipped_where_nothing_is_rare() -> None:
    low, high = least_error(_histogram(np.linspace(-1, 3, 40_001)), symmetric=False)
    assert (low, high) == pytest.approx((-1, 3), abs=0.05)


@pytest.mark.parametrize("clip", [False, True])
def test_a_tensor_that_is_always_zero_has_an_empty_range(clip: bool) -> None:
    feeds = [{"x": np.zeros((1, 1000), np.float32)}]
    assert _both(ranges(_graph(), feeds, tensors=["double"], clip=clip), "double") == (0, 0)


@pytest.mark.parametrize("act", [extremes, histograms])
def test_values_that_are_not_finite_are_refused_by_name(act: Callable[..., object]) -> None:
    feeds = _feeds()
    feeds[1]["x"][0, 0] = np.inf
    with pytest.raises(ArtefactError, match=r"activation double reaches .* to inf"):
        act(_graph(), feeds, ["double"])


def test_no_images() -> None:
    with pytest.raises(DataError, match=r"at least one calibration image.*--calibrate"):
        ranges(_graph(), [], tensors=["x"])


def test_batches_are_preprocessed_images_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, spec = make_samples(5), make_input(16)
    batches = Batches(samples, spec, size=2)
    assert [len(feed["image"]) for feed in batches] == [2, 2, 1]
    assert np.array_equal(batches[1]["image"][0], preprocess(samples[2].read(), spec))
    assert batches[0] is batches[0]
    assert [len(feed["image"]) for feed in batches[1:]] == [2, 1]
    assert [len(feed["image"]) for feed in Batches(samples, make_input(320), size=4)] == [1, 1, 1, 1, 1]
    monkeypatch.setattr(calibration, "_CACHE_BYTES", 100)
    large = Batches(samples, spec, size=2)
    assert large[0] is not large[0]
    assert np.array_equal(large[0]["image"], batches[0]["image"])
