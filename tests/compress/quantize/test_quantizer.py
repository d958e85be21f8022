"""Tests of compress.quantize.quantizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from compress.quantize.calibration import Batches, ranges
from compress.quantize.observe import logits
from compress.quantize.quantizer import (
    dynamic,
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
    assert weighted(_static(model, feeds)) == []
    left = [node.name for node in weighted(_static(model, feeds, floats=names[1:3]))]
    assert left == names[1:3]
    everything = [node.name for node in quantizable(model)]
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
    assert len(hidden) == _kinds(model).count("Relu") > 0
    assert not set(to_calibrate(model, TARGETS["portable"])) & set(hidden)
    # Where ranges are symmetric, rectifiers stay, and what they read is quantized, too.
    assert set(hidden) < set(to_calibrate(model, TARGETS["tensorrt"]))


def test_an_output_that_others_read_or_that_leaves_the_graph_is_not_hidden() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["e"]),
        helper.make_node("Relu", ["e"], ["f"]),
    ]
    output = helper.make_tensor_value_info("e", TensorProto.FLOAT, None)
    assert rectified(helper.make_model(helper.make_graph(nodes, "g", [], [output]))) == {"a": "b"}


def test_dynamic_quantizes_the_products_and_nothing_else(prepared: dict[str, ModelProto], feeds: Batches) -> None:
    model = prepared["vit_tiny_patch16_224"]
    done = dynamic(model, TARGETS["portable"])
    assert _kinds(done).count("MatMulInteger") == 9
    assert "QuantizeLinear" not in _kinds(done)
    assert [node.op_type for node in weighted(done)] == ["Conv"]
    wanted, found = logits(model, feeds), logits(done, feeds)
    assert 0 < np.abs(found - wanted).max() < 0.3 * np.abs(wanted).max()
