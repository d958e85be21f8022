"""Tests of compress.quantization.equalize."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper

from compress.quantization.equalize import equalize
from tests.compress.qdq_graphs import Floats, arrays, blocks, correlated, error, int8, make, run, weights


def unbalanced(parent: ModelProto, factors: Floats) -> ModelProto:
    """The same function with the channels between c0 and c1, and c1 and c2, scaled by these factors and back."""
    out = ModelProto()
    out.CopyFrom(parent)
    stored = arrays(out)
    changes = {
        "c0.w": stored["c0.w"] * factors.reshape(-1, 1, 1, 1),
        "c0.b": stored["c0.b"] * factors,
        "c2.w": stored["c2.w"] / factors.reshape(1, -1, 1, 1),
        "c1.b": stored["c1.b"] * factors,
    }
    for tensor in out.graph.initializer:
        if tensor.name in changes:
            tensor.CopyFrom(numpy_helper.from_array(changes[tensor.name], tensor.name))
    return out


def same(one: ModelProto, other: ModelProto, images: Floats) -> bool:
    wanted = run(one, images)
    return bool(np.abs(run(other, images) - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max()))


@settings(max_examples=20)
@given(st.lists(st.floats(-3, 3), min_size=16, max_size=16))
def test_the_function_stays_whatever_the_scales(powers: list[float]) -> None:
    parent = unbalanced(blocks(), np.float32(10) ** np.array(powers, np.float32))
    assert same(parent, equalize(parent), correlated(4, 16))


def test_ranges_of_neighbours_become_equal() -> None:
    parent = unbalanced(blocks(), np.geomspace(0.01, 100, 16).astype(np.float32))
    before = parent.SerializeToString(deterministic=True)
    stored = arrays(equalize(parent))
    assert parent.SerializeToString(deterministic=True) == before
    ranges = [
        np.abs(stored["c0.w"]).max(axis=(1, 2, 3)),
        np.abs(stored["c1.w"]).max(axis=(1, 2, 3)),
        np.abs(stored["c2.w"]).max(axis=(0, 2, 3)),
    ]
    assert np.allclose(ranges[0], ranges[1], rtol=0.05)
    assert np.allclose(ranges[1], ranges[2], rtol=0.05)


def test_an_unbalanced_graph_is_quantized_better() -> None:
    parent, images = unbalanced(blocks(), np.geomspace(0.01, 100, 16).astype(np.float32)), correlated(16, 16)
    balanced = equalize(parent)
    errors = [error(int8(graph, images), parent, images) for graph in (parent, balanced)]
    assert errors[1] < errors[0] / 10


def test_not_through_clip() -> None:
    parent = blocks(kind="Clip")
    for node in parent.graph.node:
        if node.op_type == "Clip":
            node.input.extend(["", "six"])
    parent.graph.initializer.append(numpy_helper.from_array(np.float32(6), "six"))
    assert equalize(parent) == parent


@pytest.mark.parametrize("reader", ["another node", "the caller"])
def test_not_where_something_else_reads(reader: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="c0"),
        helper.make_node("Conv", ["a", "v"], ["b" if reader == "another node" else "y"], name="c1"),
    ]
    if reader == "another node":
        nodes.append(helper.make_node("Add", ["a", "b"], ["y"], name="add"))
    tensors = {"w": 100 * weights((16, 16, 1, 1), 0), "v": weights((16, 16, 1, 1), 1)}
    parent = make(nodes, tensors, shape=["n", 16, 6, 6])
    assert equalize(parent) == parent if reader == "another node" else equalize(parent) != parent
    if reader == "the caller":
        parent.graph.output.append(helper.make_empty_tensor_value_info("a"))
        assert equalize(parent) == parent


def test_groups_pools_and_gemm() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["a"], name="c0"),
        helper.make_node("LeakyRelu", ["a"], ["r"], name="relu", alpha=0.1),
        helper.make_node("MaxPool", ["r"], ["p"], name="pool", kernel_shape=[2, 2]),
        helper.make_node("Conv", ["p", "v"], ["c"], name="c1", group=2),
        helper.make_node("GlobalAveragePool", ["c"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "m", "n"], ["h"], name="g0", transB=1),
        helper.make_node("Relu", ["h"], ["i"], name="relu2"),
        helper.make_node("Gemm", ["i", "o"], ["y"], name="g1"),
    ]
    tensors = {
        "w": weights((16, 16, 3, 3), 0) * np.geomspace(0.01, 100, 16).astype(np.float32).reshape(-1, 1, 1, 1),
        "b": weights((16,), 1),
        "v": weights((6, 8, 3, 3), 2),
        "m": 100 * weights((5, 6), 3),
        "n": weights((5,), 4),
        "o": weights((5, 3), 5),
    }
    parent = make(nodes, tensors, shape=["n", 16, 6, 6], rank=2)
    balanced = equalize(parent)
    assert same(parent, balanced, correlated(4, 16))
    stored = arrays(balanced)
    by_input = np.abs(stored["v"]).reshape(2, 3, 8, 9).max(axis=(1, 3)).reshape(-1)
    assert np.allclose(np.abs(stored["w"]).max(axis=(1, 2, 3)), by_input, rtol=0.05)
    assert np.allclose(np.abs(stored["m"]).max(axis=1), np.abs(stored["o"]).max(axis=1), rtol=0.05)


def test_dead_channels_stay_dead() -> None:
    parent = unbalanced(blocks(), np.where(np.arange(16) == 3, 0, 1).astype(np.float32) + np.float32(1e-30))
    balanced = equalize(blocks())
    assert all(np.isfinite(values).all() for values in arrays(balanced).values())
    assert all(np.isfinite(values).all() for values in arrays(equalize(parent)).values())
