"""Tests of compress.quantize."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compress import quantize as module
from compress.export import export
from compress.quantize import TARGETS, detect_target, quantize
from tests.zoo.factories import make_card, make_dataset, make_graph, make_input
from zoo import checkpoint, graph
from zoo.datasets.base import Dataset
from zoo.errors import DataError, UsageError
from zoo.models.registry import build
from zoo.predictor import Predictor
from zoo.recipe import QuantizeConfig


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    graph.write(make_graph(), make_card(stages=("train", "export")), path)
    from tests.zoo.factories import write_artefact

    write_artefact(path, make_card(stages=("train", "export")))
    return path


@pytest.fixture
def dataset() -> Dataset:
    return make_dataset(per_split=8)


@pytest.mark.parametrize("target", TARGETS)
def test_settings_follow_the_target_and_stand_in_the_card(
    source: Path, tmp_path: Path, dataset: Dataset, target: str
) -> None:
    out = tmp_path / "model.int8.onnx"
    card = quantize(source, out, QuantizeConfig(target=target), dataset=dataset, name="q")
    assert card.name == "q"
    assert card.lineage[-1].summary["target"] == target
    tensors = {tensor.name: tensor for tensor in onnx.load(str(out)).graph.initializer}
    zero_points = {tensor.data_type for name, tensor in tensors.items() if name.endswith("_zero_point")}
    weights = [onnx.numpy_helper.to_array(t) for name, t in tensors.items() if name.endswith("_quantized")]
    assert weights
    assert (onnx.TensorProto.UINT8 in zero_points) == TARGETS[target].unsigned_activations
    assert max(abs(int(w.max())) for w in weights) <= (64 if TARGETS[target].reduce_range else 127)


def test_depthwise_weights_keep_eight_bits_and_the_others_seven(tmp_path: Path, dataset: Dataset) -> None:
    torch.manual_seed(0)
    spec = make_input(32, "L")
    model = build("tf_efficientnet_lite0", classes=3, channels=1)
    for parameter in model.classifier.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    card = make_card(architecture="tf_efficientnet_lite0", spec=spec, stages=("train",))
    checkpoint.save(model, card, tmp_path / "m.safetensors")
    export(tmp_path / "m.safetensors", tmp_path / "m.onnx")
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", QuantizeConfig(), dataset=dataset)
    proto = onnx.load(str(tmp_path / "q.onnx"))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    source = {
        node.output[0]: stored.get(node.input[0]) for node in proto.graph.node if node.op_type == "DequantizeLinear"
    }
    largest: dict[bool, int] = {True: 0, False: 0}
    floats = 0
    for node in proto.graph.node:
        if node.op_type == "Conv":
            weight = source.get(node.input[1])
            floats += weight is None
            if weight is not None:
                groups = next(entry.i for entry in node.attribute if entry.name == "group")
                depthwise = groups == weight.shape[0]
                largest[depthwise] = max(largest[depthwise], int(abs(weight.astype(int)).max()))
    assert largest == {True: 127, False: 64}
    assert floats == 3


def test_wider_groups_are_not_taken_for_depthwise() -> None:
    shapes = {"plain": (8, 4, 3, 3), "depthwise": (8, 1, 3, 3), "grouped": (8, 2, 3, 3), "multiplied": (16, 1, 3, 3)}
    groups = {"plain": 1, "depthwise": 8, "grouped": 4, "multiplied": 8}
    nodes = [onnx.helper.make_node("Conv", ["x", name], [f"{name}/out"], group=groups[name]) for name in shapes]
    weights = [onnx.numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in shapes.items()]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], weights))
    assert list(module._full_range(proto)) == ["depthwise"]
    assert module._full_range(proto)["depthwise"][0]["reduce_range"] is False


@pytest.mark.parametrize("calibration", module.CALIBRATIONS)
def test_every_calibration_makes_a_file_that_serves(
    source: Path, tmp_path: Path, dataset: Dataset, calibration: str
) -> None:
    out = tmp_path / "model.int8.onnx"
    quantize(source, out, QuantizeConfig(calibration=calibration), dataset=dataset)
    answers = Predictor(out).predict([dataset.splits["test"][0].read()])
    assert answers[0].labels[0] in ("cat", "dog", "hen")


def test_unknown_settings(source: Path, tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(UsageError, match="did you mean vnni"):
        quantize(source, tmp_path / "out.onnx", QuantizeConfig(target="vni"), dataset=dataset)
    with pytest.raises(UsageError, match="did you mean entropy"):
        quantize(source, tmp_path / "out.onnx", QuantizeConfig(calibration="entropi"), dataset=dataset)


def test_no_calibration_images(source: Path, tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(DataError, match="at least one calibration image"):
        quantize(source, tmp_path / "out.onnx", QuantizeConfig(images=0), dataset=dataset)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("aarch64", [], "arm"),
        ("x86_64", ["avx2"], "portable"),
        ("x86_64", ["avx2", "avx512_vnni"], "vnni"),
        ("x86_64", ["avx2", "avx_vnni"], "vnni"),
    ],
)
def test_detect_target(monkeypatch: pytest.MonkeyPatch, machine: str, flags: list[str], expected: str) -> None:
    import cpuinfo

    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda: {"flags": flags})
    assert detect_target() == expected
