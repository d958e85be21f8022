"""Tests of compress.quantize.qdq_layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from compress.quantize.qdq_layers import Graph, Layer, layers
from tests.compress.qdq_graphs import Floats, blocks, correlated, int8, make, run, weights


def found(parent: ModelProto, images: Floats, **changes: Any) -> list[Layer]:
    return layers(Graph(int8(parent, images, **changes)), Graph(parent))


CONVOLUTIONS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((5, 8, 1, 1), {}),
    ((5, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    ((5, 8, 3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 1]}),
    ((6, 4, 3, 3), {"group": 2, "dilations": [2, 1]}),
    ((8, 1, 3, 3), {"group": 8, "strides": [2, 2]}),
]


@pytest.mark.parametrize(("shape", "attributes"), CONVOLUTIONS)
def test_samples_times_rows_are_the_outputs(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", **attributes)
    parent = make([node], {"w": weights(shape, 0), "b": weights(shape[:1], 1)}, shape=["n", 8, 7, 6])
    images = correlated(3, 8, size=(7, 6))
    (layer,) = found(parent, images)
    assert layer.depthwise == (shape[1] == 1)
    assert layer.fan_in == np.prod(shape[1:])
    samples = layer.sample(images, 10_000, np.random.default_rng(0))  # all places, in order
    made = np.einsum("ngk,gok->ngo", samples, layer.rows(layer.weight)).reshape(len(samples), -1)
    assert layer.float_bias is not None
    wanted = np.moveaxis(run(parent, images), 1, -1).reshape(-1, shape[0])
    assert np.allclose(made + layer.float_bias, wanted, atol=1e-5)
    assert np.array_equal(layer.unrows(layer.rows(layer.weight)), layer.weight)
    some = layer.sample(images, 17, np.random.default_rng(0))
    assert some.shape == (17, *samples.shape[1:])
    assert all((samples == one).all(axis=(1, 2)).any() for one in some)


@pytest.mark.parametrize("kind", ["Gemm", "Gemm transposed", "MatMul"])
def test_matrix_products(kind: str) -> None:
    weight = weights((6, 5), 0)
    stored = weight.T.copy() if kind == "Gemm transposed" else weight
    names = ["x", "w"] if kind == "MatMul" else ["x", "w", "b"]
    nodes = [helper.make_node(kind.split()[0], names, ["raw"], name="m")]
    nodes[0].attribute.extend([helper.make_attribute("transB", 1)] if kind == "Gemm transposed" else [])
    nodes.append(helper.make_node("Add", ["raw", "c"], ["y"], name="add"))
    tensors = {"w": stored, "b": weights((5,), 1), "c": weights((5,), 2)}
    parent = make(
        nodes, tensors if "b" in names else {k: v for k, v in tensors.items() if k != "b"}, shape=["n", 6], rank=2
    )
    images = correlated(9, 6, size=())
    (layer,) = found(parent, images)
    samples = layer.sample(images, 99, np.random.default_rng(0))
    assert np.allclose(samples[:, 0] @ layer.rows(layer.weight)[0].T, images @ weight, atol=1e-5)
    assert np.array_equal(layer.unrows(layer.rows(stored)), stored)
    assert layer.groups == 1
    assert not layer.depthwise
    assert not layer.shared


def test_the_bias_of_a_matrix_product_is_added_after_it() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["raw"], name="m"),
        helper.make_node("Add", ["c", "raw"], ["y"], name="add"),
    ]
    parent = make(nodes, {"w": weights((6, 5), 0), "c": weights((5,), 2)}, shape=["n", 6], rank=2)
    model = int8(parent, correlated(9, 6, size=()))
    # As in transformers, where the Add stays in float.
    graph = Graph(model)
    for node in model.graph.node:
        if node.op_type == "Add":
            for index, name in enumerate(node.input):
                if (maker := graph.producers.get(name)) is not None and "c" in maker.input[0]:
                    node.input[index] = "c"
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights((5,), 2), "c"))
    (layer,) = layers(Graph(model), Graph(parent))
    assert (layer.bias, layer.bias_scale) == ("c", None)
    assert np.array_equal(layer.float_bias, weights((5,), 2))  # type: ignore[arg-type]


def test_layers_come_in_order_and_with_their_biases() -> None:
    parent = blocks()
    all_of_it = found(parent, correlated(4, 16))
    assert [layer.node.name for layer in all_of_it] == ["c0", "c1", "c2"]
    assert [layer.depthwise for layer in all_of_it] == [False, True, False]
    assert [layer.source for layer in all_of_it] == ["x", "c0.out", "c1.out"]
    assert [layer.output for layer in all_of_it] == ["c0.raw", "c1.raw", "y"]
    for index, layer in enumerate(all_of_it):
        assert np.array_equal(layer.float_bias, weights((16,), 100 + index))  # type: ignore[arg-type]


def test_what_is_not_recognised_is_left_out() -> None:
    parent, images = blocks(), correlated(4, 16)
    assert found(parent, images, per_channel=False) == []
    assert layers(Graph(parent), Graph(parent)) == []
    stranger = blocks()
    for node in stranger.graph.node:
        node.name = f"other.{node.name}"
    assert layers(Graph(int8(parent, images)), Graph(stranger)) == []
    automatic = int8(parent, images)
    for node in automatic.graph.node:
        if node.name == "c1":
            node.attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
    assert [layer.node.name for layer in layers(Graph(automatic), Graph(parent))] == ["c0", "c2"]


def test_only_tensors_of_the_same_kind_are_stored() -> None:
    graph = Graph(blocks())
    with pytest.raises(ValueError, match="expected float32"):
        graph.store("c0.b", np.zeros(15, np.float32))
