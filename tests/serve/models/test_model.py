import shutil

import numpy as np
import pytest

import serve.models.model
from serve.models.model import load_model, stamp
from tests.serve.conftest import write_artefact
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError, CheckError
from zoo.base.files import sha256_file


def test_a_model_says_what_is_loaded(output):
    path = output / "good" / "model.onnx"
    model = load_model("good", path, threads=2)
    assert model.digest == sha256_file(path)
    assert model.version == model.digest[:12]
    assert (model.name, model.alone.path, model.bytes) == ("good", path, path.stat().st_size)
    assert model.card.use.labels == ("cat", "dog", "fox")


def test_both_sessions_answer_the_same(output):
    model = load_model("good", output / "good" / "model.onnx", threads=2)
    alone, shared = model.alone, model.shared
    assert alone is not shared
    images = np.ones((2, 3, 8, 8), np.float32)
    np.testing.assert_allclose(alone.logits(images), shared.logits(images), rtol=1e-5)


@pytest.mark.parametrize("why", ["one thread", "large file", "gpu"])
def test_one_session_where_a_second_does_not_pay(output, monkeypatch, why):
    if why == "large file":
        monkeypatch.setattr(serve.models.model, "_TWICE_IN_MEMORY", 100)
    if why == "gpu":
        monkeypatch.setattr(serve.models.model, "default_providers", lambda: ["CUDAExecutionProvider"])
    model = load_model("good", output / "good" / "model.onnx", threads=1 if why == "one thread" else 2)
    assert model.alone is model.shared


def test_every_session_is_warm(output, monkeypatch):
    runs = []

    class Counting(Predictor):
        def logits(self, images):
            runs.append((id(self), images.shape))
            return super().logits(images)

    monkeypatch.setattr(serve.models.model, "Predictor", Counting)
    load_model("good", output / "good" / "model.onnx", threads=2)
    # Beside the golden check, of each.
    assert sorted(runs.count(run) for run in set(runs)) == [2, 2]
    assert {shape for _, shape in runs} == {(1, 3, 8, 8)}


def test_a_file_that_changes_while_it_is_loaded_is_refused(tmp_path, monkeypatch):
    path = write_artefact(tmp_path / "a" / "model.onnx", seed=1)
    other = write_artefact(tmp_path / "b" / "model.onnx", seed=2)

    def load(path, **options):
        predictor = Predictor(path, **options)
        shutil.copyfile(other, path)
        return predictor

    monkeypatch.setattr(serve.models.model, "Predictor", load)
    with pytest.raises(ArtefactError, match="was changed while it was read"):
        load_model("a", path, threads=1)


def test_what_is_broken_is_refused(output, tmp_path):
    with pytest.raises(CheckError, match="golden self-check failed"):
        load_model("liar", output / "liar" / "model.onnx")
    with pytest.raises(ArtefactError, match=r"cannot be loaded: .*No such file"):
        load_model("none", tmp_path / "model.onnx")
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(ArtefactError):
        load_model("folder", tmp_path / "model.onnx")


def test_a_stamp_notices_a_new_file_of_the_same_size(tmp_path):
    path = tmp_path / "file"
    path.write_text("a")
    before = stamp(path)
    assert stamp(path) == before
    (tmp_path / "new").write_text("b")
    (tmp_path / "new").replace(path)
    assert stamp(path) != before
