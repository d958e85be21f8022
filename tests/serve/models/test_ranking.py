from dataclasses import replace

from serve.models.folder import scan
from serve.models.model import load_model
from serve.models.ranking import best_first
from serve.models.snapshot import View
from serve.models.state import State
from serve.models.versions import VersionStore
from tests.serve.conftest import write_artefact


def test_accuracy_then_size_then_name(output, tmp_path):
    store = VersionStore(tmp_path / "state", keep=3)
    names = best_first(View(artefacts=scan(output)), store)
    # What cannot be read or was not measured is last; a torn file is smaller.
    assert names == ["liar", "good", "other", "torn", "other-int8"]
    for name in ("one", "two", "a-long-name"):
        write_artefact(tmp_path / "m" / name / "model.onnx", top1=0.5)
    assert best_first(View(artefacts=scan(tmp_path / "m")), store) == ["one", "two", "a-long-name"]


def test_what_would_answer_is_ranked(tmp_path):
    store = VersionStore(tmp_path / "state", keep=3)
    models = tmp_path / "models"
    write_artefact(models / "a" / "model.onnx", seed=1, top1=0.5)
    good = load_model("b", write_artefact(models / "b" / "model.onnx", seed=2, top1=0.9), threads=1)
    store.add(good)
    write_artefact(models / "b" / "model.onnx", seed=3, top1=0.1)
    view = View(artefacts=scan(models))
    assert best_first(view, store) == ["a", "b"]
    assert best_first(replace(view, state=State(pins={"b": good.version})), store) == ["b", "a"]
    (models / "b" / "model.onnx").write_bytes(b"broken")
    assert best_first(View(artefacts=scan(models)), store) == ["b", "a"]
