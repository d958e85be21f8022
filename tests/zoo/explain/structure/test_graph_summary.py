"""An ONNX file in numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.zoo.factories import make_card, make_graph, write_artefact
from zoo.artefact import onnx_file as graph
from zoo.base.errors import ArtefactError
from zoo.explain.structure.graph_summary import summarise


def test_nodes_weights_and_ends(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    card = write_artefact(path)
    found, read = summarise(path)
    assert read == card
    assert found.nodes == {"Flatten": 1, "GlobalAveragePool": 1, "MatMul": 1}
    assert found.opsets == {"ai.onnx": 18}
    assert found.inputs == {"image": "float32 [N, 3, 32, 32]"}
    assert found.outputs == {"logits": "float32 [N, 3]"}
    assert {name: (w.tensors, w.numbers, w.bytes) for name, w in found.weights.items()} == {"float32": (1, 9, 36)}
    assert found.file_bytes == path.stat().st_size


def test_quantized_weights_constants_and_other_domains(tmp_path: Path) -> None:
    model = make_graph()
    nodes = model.graph.node
    model.graph.initializer[0].name = "kept"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 3), np.int8), "weight8"))
    scale = helper.make_node("Constant", [], ["scale"], value=helper.make_tensor("s", TensorProto.FLOAT, [], [0.5]))
    nodes.insert(0, helper.make_node("DequantizeLinear", ["weight8", "scale"], ["weight"], domain=""))
    nodes.insert(0, scale)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    nodes.append(helper.make_node("Gelu", ["flat"], ["unused"], domain="com.microsoft"))
    path = tmp_path / "model.onnx"
    graph.write(model, make_card(stages=("train", "export")), path)
    found, _ = summarise(path)
    assert found.opsets == {"ai.onnx": 18, "com.microsoft": 1}
    assert found.nodes["com.microsoft.Gelu"] == found.nodes["DequantizeLinear"] == found.nodes["Constant"] == 1
    # Nine weights and the scale; the most bytes come first.
    assert [(name, w.numbers, w.bytes) for name, w in found.weights.items()] == [("float32", 10, 40), ("int8", 9, 9)]


def test_no_onnx_file(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no ONNX file at"):
        summarise(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(onnx.ModelProto().SerializeToString() + b"x")
    with pytest.raises(ArtefactError, match=r"not a readable ONNX file|not an ONNX model"):
        summarise(tmp_path / "model.onnx")
