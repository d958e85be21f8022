from pathlib import Path

import pytest

from serve.protocols.schema import ModelsResponse
from tests.serve.conftest import write_artefact
from tests.serve.models.repositories import serving
from zoo.base.files import sha256_file


def test_every_model_is_described(output, tmp_path):
    with serving(output, state=tmp_path) as (repository, _):
        answer = repository.describe()
    assert ModelsResponse.model_validate(answer).model_dump() == answer
    assert answer["default"] == "good"
    good, liar, other, int8, torn = answer["models"]
    assert good == {
        "name": "good",
        "file": "good/model.onnx",
        "version": good["digest"][:12],
        "digest": sha256_file(output / "good" / "model.onnx"),
        "bytes": (output / "good" / "model.onnx").stat().st_size,
        "precision": "float32",
        "classes": 3,
        "accuracy": {"dataset": "d", "split": "validation", "n": 9, "top1": 0.9},
        "loaded": True,
        "error": None,
        "versions": [],
    }
    assert (liar["loaded"], liar["error"][:51]) == (False, "liar/model.onnx: golden self-check failed: expected")
    assert (other["loaded"], other["error"], other["accuracy"]["top1"]) == (False, None, 0.5)
    assert (int8["file"], int8["accuracy"]) == ("other/model.int8.onnx", None)
    assert (torn["classes"], torn["error"].partition(":")[0]) == (None, "torn/model.onnx")
    assert str(Path(output)) not in str(answer)


@pytest.mark.parametrize("loaded", [True, False])
def test_operators_see_pins_splits_and_shadows(tmp_path, loaded):
    write_artefact(tmp_path / "a" / "model.onnx", seed=1, top1=0.9)
    write_artefact(tmp_path / "b" / "model.onnx", seed=2, top1=0.5)
    with serving(tmp_path) as (repository, _):
        old = repository.load("b").version
        write_artefact(tmp_path / "b" / "model.onnx", seed=3)
        repository.reload()
        new = repository.get("b").version
        repository.rollback("b")
        repository.set_split("a", to="b", percent=12.5)
        repository.set_shadow("a", to="b")
        repository.clear_split("a") if not loaded else None
        plain = repository.describe()["models"][1]
        assert not {"pinned", "split", "shadow"} & set(plain)
        a, b = repository.describe(operator=True)["models"]
    assert a["split"] == ({"to": "b", "version": None, "percent": 12.5} if loaded else None)
    assert a["shadow"] == {"to": "b", "version": None}
    assert (b["pinned"], b["version"], b["versions"], b["in_memory"]) == (old, old, [new], [old])


def test_a_pinned_model_that_is_not_loaded_is_described_by_its_pin(tmp_path):
    write_artefact(tmp_path / "a" / "model.onnx", seed=1, top1=0.9)
    write_artefact(tmp_path / "b" / "model.onnx", seed=2, top1=0.5)
    with serving(tmp_path) as (repository, _):
        old = repository.load("b")
        write_artefact(tmp_path / "b" / "model.onnx", seed=3)
        repository.reload()
        repository.rollback("b")
    with serving(tmp_path) as (repository, _):
        b = repository.describe()["models"][1]
    assert (b["loaded"], b["version"], b["digest"], b["accuracy"]["top1"]) == (False, old.version, old.digest, 0.5)
