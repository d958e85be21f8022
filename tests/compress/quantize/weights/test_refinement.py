"""Tests of compress.quantize.weights.refinement."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper

from compress.quantize.qdq_layers import Graph, layers
from compress.quantize.weights.refinement import refine
from tests.compress.qdq_graphs import Floats, arrays, blocks, correlated, error, feeds, int8, make, weights


@pytest.fixture(scope="module")
def images() -> Floats:
    return correlated(64, 16)


@pytest.fixture(scope="module")
def parent() -> ModelProto:
    return blocks(2)


@pytest.fixture(scope="module")
def plain(parent: ModelProto, images: Floats) -> ModelProto:
    return int8(parent, images)


def pair_sums(model: ModelProto, parent: ModelProto, *, depthwise: bool) -> int:
    """The largest magnitude of the sum of two neighbouring codes."""
    graph, largest = Graph(model), 0
    for layer in layers(graph, Graph(parent)):
        if layer.depthwise == depthwise:
            rows = layer.rows(graph.array(layer.codes)).astype(int)
            even = rows.shape[-1] // 2 * 2
            largest = max(largest, int(np.abs(rows[..., 0:even:2] + rows[..., 1:even:2]).max()))
    return largest


def test_closer_to_the_parent_than_seven_bits(parent: ModelProto, plain: ModelProto, images: Floats) -> None:
    fresh = correlated(32, 16, seed=1)
    before = error(plain, parent, fresh)
    rounded = error(refine(plain, parent, saturates=True), parent, fresh)
    compensated = error(refine(plain, parent, saturates=True, feeds=feeds(images, 8)), parent, fresh)
    assert rounded < before * 0.9
    assert compensated < rounded * 0.75


def test_pairs_are_bounded_only_where_they_saturate(parent: ModelProto, plain: ModelProto, images: Floats) -> None:
    portable = refine(plain, parent, saturates=True, feeds=feeds(images, 8))
    assert pair_sums(portable, parent, depthwise=False) <= 128
    assert pair_sums(portable, parent, depthwise=True) > 128
    assert pair_sums(refine(plain, parent, saturates=False), parent, depthwise=False) > 128
    largest = max(np.abs(values.astype(int)).max() for values in arrays(portable).values() if values.dtype == np.int8)
    assert largest == 127


def test_biases_stay_on_request(parent: ModelProto, plain: ModelProto, images: Floats) -> None:
    for shifted in (False, True):
        refined = refine(plain, parent, saturates=True, feeds=feeds(images, 8), shift_biases=shifted)
        graph = Graph(refined)
        for layer in layers(graph, Graph(parent)):
            assert layer.bias is not None and layer.bias_scale is not None and layer.float_bias is not None
            step = graph.array(layer.bias_scale)
            moved = np.abs(graph.array(layer.bias) * step - layer.float_bias) > 0.51 * step
            assert moved.any() == shifted


def test_only_codes_scales_and_biases_change(parent: ModelProto, plain: ModelProto, images: Floats) -> None:
    kept, origin = plain.SerializeToString(deterministic=True), parent.SerializeToString(deterministic=True)
    refined = refine(plain, parent, saturates=True, feeds=feeds(images, 8))
    assert plain.SerializeToString(deterministic=True) == kept
    assert parent.SerializeToString(deterministic=True) == origin
    assert list(refined.graph.node) == list(plain.graph.node)
    before, after = arrays(plain), arrays(refined)
    assert list(before) == list(after)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    endings = ("w_quantized", "w_scale", "b_quantized", "b_quantized_scale")
    assert changed == {f"c{index}.{ending}" for index in range(6) for ending in endings}


def test_same_seed_same_graph(parent: ModelProto, plain: ModelProto, images: Floats) -> None:
    many = feeds(np.repeat(images, 4, axis=0), 8)
    first, second, other = (
        refine(plain, parent, saturates=True, feeds=many, seed=seed).SerializeToString() for seed in (0, 0, 1)
    )
    assert first == second
    assert first != other


def test_biases_go_with_the_new_scales(parent: ModelProto, plain: ModelProto) -> None:
    refined = refine(plain, parent, saturates=True)
    stored = arrays(refined)
    for layer in layers(Graph(refined), Graph(parent)):
        assert layer.bias is not None
        assert layer.bias_scale is not None
        assert layer.float_bias is not None
        unit = stored[layer.bias_scale]
        assert np.allclose(unit, stored[layer.scale] * layer.input_scale, rtol=1e-6)
        assert (np.abs(stored[layer.bias] * unit - layer.float_bias) <= unit * 0.51).all()


def test_a_bias_far_larger_than_the_weights_still_fits(images: Floats) -> None:
    parent = blocks()
    for tensor in parent.graph.initializer:
        if tensor.name == "c0.w":
            tensor.CopyFrom(helper.make_tensor("c0.w", 1, [16, 16, 1, 1], np.full(256, 1e-10, np.float32)))
    refined = refine(int8(parent, images), parent, saturates=True, feeds=feeds(images, 8))
    assert error(refined, parent, images) < 1e-4


def test_biases_take_over_the_mean_error(images: Floats) -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")
    parent = make([node], {"w": weights((8, 16, 1, 1), 0), "b": weights((8,), 1)}, shape=["n", 16, 6, 6])
    shifted = images + 3
    refined = refine(int8(parent, shifted), parent, saturates=True, feeds=feeds(shifted, 8))
    graph = Graph(refined)
    (layer,) = layers(graph, Graph(parent))
    assert layer.bias is not None
    assert layer.bias_scale is not None
    assert layer.float_bias is not None
    error = layer.weight - graph.array(layer.codes) * graph.array(layer.scale).reshape(-1, 1, 1, 1)
    wanted = layer.float_bias + error[:, :, 0, 0] @ shifted.mean(axis=(0, 2, 3))
    assert np.allclose(graph.array(layer.bias) * graph.array(layer.bias_scale), wanted, atol=2e-4)
    assert np.abs(wanted - layer.float_bias).max() > 2e-3


def test_inputs_far_from_zero_and_constant_ones(images: Floats) -> None:
    far = images[:16] * np.float32(0.01) + np.float32(100)
    far[:, 3] = 7
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")
    parent = make([node], {"w": weights((8, 16, 3, 3), 0), "b": weights((8,), 1)}, shape=["n", 16, 6, 6])
    plain = int8(parent, far)
    for single in (far, far[:1]):
        refined = refine(plain, parent, saturates=True, feeds=feeds(single, 8))
        assert error(refined, parent, far) < error(plain, parent, far)


def test_layers_without_bias_and_odd_widths(images: Floats) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "v"], ["y"], name="head", transB=1),
    ]
    tensors = {"w": weights((7, 16, 3, 3), 0), "v": weights((3, 7), 1)}
    parent = make(nodes, tensors, shape=["n", 16, 6, 6], rank=2)
    plain = int8(parent, images)
    refined = refine(plain, parent, saturates=True, feeds=feeds(images, 8))
    assert pair_sums(refined, parent, depthwise=False) <= 128
    assert error(refined, parent, images) < error(plain, parent, images)


def test_shared_weights_are_rounded_without_statistics(images: Floats) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "w"], ["y"], name="second"),
    ]
    parent = make(nodes, {"w": weights((16, 16, 1, 1), 0)}, shape=["n", 16, 6, 6])
    plain = int8(parent, images)
    with_inputs = refine(plain, parent, saturates=True, feeds=feeds(images, 8))
    assert (
        arrays(with_inputs)["w_quantized"].tolist()
        == arrays(refine(plain, parent, saturates=True))["w_quantized"].tolist()
    )
    assert pair_sums(with_inputs, parent, depthwise=False) <= 128


def test_what_is_not_recognised_stays(parent: ModelProto, images: Floats) -> None:
    per_tensor = int8(parent, images, per_channel=False)
    assert refine(per_tensor, parent, saturates=True, feeds=feeds(images, 8)) == per_tensor
    assert refine(parent, parent, saturates=True) == parent
