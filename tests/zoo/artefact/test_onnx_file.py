"""ONNX files and their cards."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.zoo.factories import make_card, make_graph, make_input
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import KEY, Output
from zoo.base.errors import ArtefactError, CardError, CheckError


def test_written_card_is_read_back(tmp_path):
    path = tmp_path / "deep" / "model.onnx"
    written = graph.write(make_graph(), make_card(), path)
    model, card = graph.load(path)
    assert card == written == graph.read_card(path)
    assert (card.inform.bytes, card.inform.opset) == (3 * 3 * 4, 18)
    assert graph.signature(model) == ({"image": [None, 3, 32, 32]}, {"logits": [None, 3]})
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


def test_stamping_keeps_other_keys_and_replaces_the_card():
    model = make_graph()
    model.metadata_props.add(key="z", value="kept")
    model.metadata_props.add(key="a", value="kept too")
    graph.stamp(model, make_card(["x", "y", "z"]))
    graph.stamp(model, make_card())
    values = {entry.key: entry.value for entry in model.metadata_props}
    assert list(values) == ["a", "z", KEY] and len(model.metadata_props) == 3
    assert (values["a"], values["z"]) == ("kept too", "kept")
    assert '"cat"' in values[KEY]


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        graph.write(make_graph(), make_card(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (make_card(["cat", "dog"]), r"the card has 2 labels, so the output should be \{'logits': \[None, 2\]\}"),
        (make_card(spec=make_input(28)), r"the card says the input is \{'image': \[None, 3, 28, 28\]\}"),
        (make_card(spec=make_input(32, "L")), r"the card says the input is \{'image': \[None, 1, 32, 32\]\}"),
        (make_card(spec=make_input(32, name="x")), r"the card says the input is \{'x': "),
    ],
)
def test_disagreement_is_refused_when_stamped_and_when_loaded(tmp_path, card, message):
    with pytest.raises(CardError, match="^tiny: " + message):
        graph.stamp(make_graph(), card)
    path = tmp_path / "model.onnx"
    model = graph.stamp(make_graph(), make_card())
    model.metadata_props[0].value = graph.to_json(card)
    onnx.save(model, path)
    with pytest.raises(CardError, match=r"^.*model\.onnx: " + message):
        graph.load(path)


def test_the_outputs_name_must_agree():
    card = make_card()
    card = dataclasses.replace(card, use=dataclasses.replace(card.use, output=Output(name="scores")))
    with pytest.raises(CardError, match=r"the output should be \{'scores': \[None, 3\]\}"):
        graph.stamp(make_graph(), card)


def test_a_fixed_batch_size_is_refused():
    model = make_graph()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(CardError, match=r"the graph has \{'image': \[1, 3, 32, 32\]\}; export it again"):
        graph.stamp(model, make_card())


def test_another_type_of_input_is_refused():
    model = make_graph()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(CardError, match="the card says the input is float32, the graph has FLOAT16; export it again"):
        graph.stamp(model, make_card())


def test_a_file_without_a_card(tmp_path):
    onnx.save(make_graph(), tmp_path / "model.onnx")
    with pytest.raises(CardError, match=r"model\.onnx: no `zoo\.card` in its metadata.*`pocketzoo export`"):
        graph.read_card(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 64, "not a readable ONNX file"),
        (b"", "not an ONNX model: it has no graph"),
        (b"hello", "not an? .*ONNX"),
    ],
)
def test_garbage_files(tmp_path, content, message):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        graph.load(path)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ArtefactError, match=r"no ONNX file at .*nothing\.onnx; `pocketzoo export` writes one"):
        graph.load(tmp_path / "nothing.onnx")
    with pytest.raises(ArtefactError, match="not a readable ONNX file"):
        graph.load(tmp_path)


def _external(name: str) -> TensorProto:
    tensor = helper.make_tensor(name, TensorProto.FLOAT, [3, 3], [0.0] * 9)
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def test_weights_in_other_files_are_refused(tmp_path):
    initializer, constant = make_graph(), make_graph()
    initializer.graph.initializer[0].CopyFrom(_external("weight"))
    del constant.graph.initializer[:]
    constant.graph.node.insert(0, helper.make_node("Constant", [], ["weight"], value=_external("value")))
    subgraph = make_graph()
    branch = helper.make_graph([helper.make_node("Constant", [], ["out"], value=_external("value"))], "branch", [], [])
    subgraph.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))
    for number, model in enumerate((initializer, constant, subgraph)):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(graph.stamp(model, make_card()).SerializeToString())
        with pytest.raises(ArtefactError, match="keeps its weights in another file"):
            graph.load(path)


def test_an_invalid_graph_is_not_written(tmp_path):
    model = make_graph()
    model.graph.node[2].input[1] = "nowhere"
    with pytest.raises(ArtefactError, match=r"model\.onnx: the graph is not valid ONNX"):
        graph.write(model, make_card(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_traces_of_the_exporters_machine_are_stripped(tmp_path):
    model = make_graph()
    secret = "/home/someone/model.py"
    model.doc_string = model.graph.doc_string = secret
    for part in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
        part.doc_string = secret
        part.metadata_props.add(key="pkg.torch.onnx.stack_trace", value=secret)
    model.graph.metadata_props.add(key="trace", value=secret)
    model.graph.value_info.add(name="pooled", doc_string=secret)
    model.metadata_props.add(key="kept", value="yes")
    graph.write(graph.strip_traces(model), make_card(), tmp_path / "model.onnx")
    assert secret.encode() not in (tmp_path / "model.onnx").read_bytes()
    loaded, _ = graph.load(tmp_path / "model.onnx")
    assert [entry.key for entry in loaded.metadata_props] == ["kept", KEY]
    assert [node.name for node in loaded.graph.node] == ["pool", "flatten", "head"]


def _change_weight(model):
    weights = model.graph.initializer[0]
    values = onnx.numpy_helper.to_array(weights).copy()
    values.flat[0] = np.nextafter(values.flat[0], np.float32(9))
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))


def _rename_node(model):
    model.graph.node[0].name += "x"


@pytest.mark.parametrize("change", [_change_weight, _rename_node])
def test_another_network_than_the_cards_is_refused(tmp_path, change):
    path = tmp_path / "model.onnx"
    written = graph.write(make_graph(), make_card(), path)
    model, card = graph.load(path)
    assert card.inform.graph == written.inform.graph == graph.digest(model)
    change(model)
    onnx.save_model(model, path)
    with pytest.raises(CheckError, match="its network is not the one that its card was written with"):
        graph.load(path)
    assert graph.write(model, card, path).inform.graph == graph.digest(graph.load(path)[0]) != card.inform.graph
