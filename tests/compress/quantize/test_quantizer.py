"""Tests of compress.quantize.quantizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from compress.quantize.calibration import Batches, ranges
from compress.quantize.observe import logits
from compress.quantize.quantizer import (
    dynamic,
    interruptions,
    prepare,
    quantizable,
    rectified,
    static,
    stems,
    to_calibrate,
    weighted,
)
from compress.quantize.targets import TARGETS
from tests.compress.graphs import exported
from tests.zoo.factories import make_input, make_samples


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelProto]:
    names = ("resnet10t", "vit_tiny_patch16_224")
    return {name: prepare(onnx.load(str(exported(name, tmp_path_factory.mktemp(name))))) for name in names}


@pytest.fixture(scope="module")
def feeds() -> Batches:
    return Batches(make_samples(16), make_input(32, "L"))


def _kinds(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def _static(model: ModelProto, feeds: Batches, target: str = "portable", **options: object) -> ModelProto:
    settings = TARGETS[target]
    found = ranges(model, feeds, tensors=to_calibrate(model, settings), symmetric=settings.symmetric_activations)
    return static(model, found, settings, **options)  # type: ignore[arg-type]


def test_prepared_graphs_compute_the_same_and_name_every_node_once(
    prepared: dict[str, ModelProto], feeds: Batches, tmp_path: Path
) -> None:
    original = onnx.load(str(exported("resnet10t", tmp_path)))
    for node in original.graph.node:
        node.name = ""
    model = prepare(original)
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert np.abs(logits(model, feeds) - logits(original, feeds)).max() < 1e-4


def test_in_transformers_only_products_with_weights_are_quantized(
    prepared: dict[str, ModelProto], feeds: Batches
) -> None:
    model = prepared["vit_tiny_patch16_224"]
    kinds = [node.op_type for node in quantizable(model)]
    # Per block: qkv, projection and both layers of the MLP; the head. The patches' convolution is the stem.
    assert sorted(kinds) == ["Gemm", *["MatMul"] * 8]
    assert _kinds(model).count("MatMul") == 8 + 2 * 2
    assert [node.op_type for node in stems(model)] == ["Conv"]
    done = _static(model, feeds)
    for kind in ("Softmax", "LayerNormalization", "Gelu", "Conv"):
        assert kind in _kinds(done)
        for node in done.graph.node:
            if node.op_type == kind:
                assert not any("DequantizeLinear" in name for name in node.input), node.name


@pytest.mark.parametrize("target", TARGETS)
def test_settings_follow_the_target(prepared: dict[str, ModelProto], feeds: Batches, target: str) -> None:
    settings = TARGETS[target]
    done = _static(prepared["resnet10t"], feeds, target)
    onnx.checker.check_model(done)
    tensors = {tensor.name: tensor for tensor in done.graph.initializer}
    quantizers = [node for node in done.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in tensors]
    points = [tensors[node.input[2]] for node in quantizers]
    assert {point.data_type for point in points} == {
        TensorProto.UINT8 if settings.unsigned_activations else TensorProto.INT8
    }
    zero = all(int(numpy_helper.to_array(point)) == 0 for point in points)
    assert zero == settings.symmetric_activations
    weights = [numpy_helper.to_array(t) for name, t in tensors.items() if name.endswith(".weight_quantized")]
    # TensorRT wants its weights in float, behind a quantizer of their own.
    assert bool(weights) == (not settings.pairs)
    if weights:
        assert max(int(abs(w.astype(int)).max()) for w in weights) == (64 if settings.reduce_range else 127)
        assert all(
            tensors[node.input[1]].dims for node in done.graph.node if node.input[0].endswith("weight_quantized")
        )
    wanted, found = logits(prepared["resnet10t"], feeds), logits(done, feeds)
    assert 0 < np.abs(found - wanted).max() < 0.3 * np.abs(wanted).max()


def test_nodes_named_stay_in_float(prepared: dict[str, ModelProto], feeds: Batches) -> None:
    model = prepared["resnet10t"]
    names = [node.name for node in weighted(model)]
    assert [node.name for node in weighted(_static(model, feeds))] == names[:1]
    left = [node.name for node in weighted(_static(model, feeds, floats=names[1:3]))]
    assert left == names[:3]
    everything = [node.name for node in quantizable(model)]
    # Nothing between and behind them is rounded to INT8, up to what an INT8 layer reads.
    taken = {node.name for node in quantizable(model, names[1:3])}
    assert set(everything) - taken == {*names[1:3], "node_relu_1", "node_relu_2", "node_max_pool2d"}
    assert _static(model, feeds, floats=everything) == model


def test_ranges_and_graph_are_not_changed(prepared: dict[str, ModelProto], feeds: Batches) -> None:
    model, settings = prepared["resnet10t"], TARGETS["portable"]
    found = ranges(model, feeds, tensors=to_calibrate(model, settings))
    before, numbers = model.SerializeToString(), {name: found[name].range_value for name in found}
    first, second = static(model, found, settings), static(model, found, settings)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    assert model.SerializeToString() == before
    assert {name: found[name].range_value for name in found} == numbers


def test_what_a_rectifier_hides_needs_no_range(prepared: dict[str, ModelProto]) -> None:
    model = prepared["resnet10t"]
    hidden = rectified(model)
    # The stem's stays in float with it.
    assert len(hidden) == _kinds(model).count("Relu") - 1 > 0
    assert not set(to_calibrate(model, TARGETS["portable"])) & set(hidden)
    # Where ranges are symmetric, rectifiers stay, and what they read is quantized, too.
    assert set(hidden) < set(to_calibrate(model, TARGETS["tensorrt"]))


def _graph(*nodes: tuple[str, list[str], str], outputs: Sequence[str]) -> ModelProto:
    """Nodes named after what they write, from `x` on; `w` is a weight."""
    made = [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in nodes]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [numpy_helper.from_array(np.zeros((3, 3, 1, 1), np.float32), "w")]
    return helper.make_model(helper.make_graph(made, "g", inputs, ends, tensors))


def test_an_output_that_others_read_or_that_leaves_the_graph_is_not_hidden() -> None:
    model = _graph(
        ("Conv", ["x", "w"], "stem"),
        ("Relu", ["stem"], "rectified"),
        ("Conv", ["rectified", "w"], "a"),
        ("Relu", ["a"], "b"),
        ("Conv", ["b", "w"], "c"),
        ("Relu", ["c"], "d"),
        ("Add", ["c", "d"], "e"),
        ("Relu", ["e"], "f"),
        outputs=["e"],
    )
    assert rectified(model) == {"a": "b"}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ([("Conv", ["x", "w"], "a"), ("Conv", ["a", "w"], "b")], ["a"]),
        # What is done to the image before; its shape alone is no image.
        (
            [("Transpose", ["x"], "t"), ("Sub", ["t", "t"], "s"), ("Conv", ["s", "w"], "a"), ("Conv", ["a", "w"], "b")],
            ["a"],
        ),
        (
            [("Shape", ["x"], "n"), ("Conv", ["x", "w"], "a"), ("Expand", ["a", "n"], "e"), ("Conv", ["e", "w"], "b")],
            ["a"],
        ),
        # Two stems, and one behind another that sees the image, too.
        (
            [
                ("Conv", ["x", "w"], "a"),
                ("AveragePool", ["x"], "p"),
                ("Conv", ["p", "w"], "b"),
                ("Add", ["a", "b"], "s"),
                ("Conv", ["s", "w"], "c"),
            ],
            ["a", "b"],
        ),
        (
            [
                ("Conv", ["x", "w"], "a"),
                ("Concat", ["a", "x"], "s"),
                ("Conv", ["s", "w"], "b"),
                ("Conv", ["b", "w"], "c"),
            ],
            ["a", "b"],
        ),
    ],
)
def test_stems_are_what_sees_the_image_first(nodes: list[tuple[str, list[str], str]], first: list[str]) -> None:
    model = _graph(*nodes, outputs=[nodes[-1][2]])
    assert [node.name for node in stems(model)] == first
    taken = {node.name for node in quantizable(model)}
    assert taken.isdisjoint(first)
    assert {node.name for node in weighted(model)} == taken.intersection(n.name for n in weighted(model)) | {*first}


def test_a_network_of_stems_alone_is_quantized() -> None:
    model = _graph(("Conv", ["x", "w"], "a"), ("Relu", ["a"], "b"), outputs=["b"])
    assert [node.name for node in quantizable(model)] == ["a", "b"]


def test_one_softmax_leaves_the_rest_a_convolutional_network() -> None:
    """Selective kernels and split attention: gates by softmax; what reads and writes INT8 elsewhere stays in it."""
    model = _graph(
        ("Conv", ["x", "w"], "stem"),
        ("Conv", ["stem", "w"], "a"),
        ("Relu", ["a"], "b"),
        ("Conv", ["b", "w"], "c"),
        ("Softmax", ["c"], "gate"),
        ("Mul", ["gate", "b"], "gated"),
        ("Add", ["b", "c"], "sum"),
        ("Relu", ["sum"], "end"),
        outputs=["gated", "end"],
    )
    assert [node.name for node in quantizable(model)] == ["a", "b", "c", "sum", "end"]


def test_silu_and_gates_are_quantized_and_what_no_engine_has_in_int8_is_told() -> None:
    def network(gate: str) -> ModelProto:
        return _graph(
            ("Conv", ["x", "w"], "stem"),
            ("Conv", ["stem", "w"], "a"),
            (gate, ["a"], "gate"),
            ("Mul", ["a", "gate"], "b"),
            ("Conv", ["b", "w"], "c"),
            outputs=["c"],
        )

    assert [node.name for node in quantizable(network("Sigmoid"))] == ["a", "gate", "b", "c"]
    assert interruptions(network("Sigmoid")) == {}
    assert [node.name for node in quantizable(network("HardSigmoid"))] == ["a", "c"]
    assert interruptions(network("HardSigmoid")) == {"HardSigmoid": 1, "Mul": 1}


def test_dynamic_quantizes_the_products_and_nothing_else(prepared: dict[str, ModelProto], feeds: Batches) -> None:
    model = prepared["vit_tiny_patch16_224"]
    done = dynamic(model, TARGETS["portable"])
    assert _kinds(done).count("MatMulInteger") == 9
    assert "QuantizeLinear" not in _kinds(done)
    assert [node.op_type for node in weighted(done)] == ["Conv"]
    wanted, found = logits(model, feeds), logits(done, feeds)
    assert 0 < np.abs(found - wanted).max() < 0.3 * np.abs(wanted).max()
