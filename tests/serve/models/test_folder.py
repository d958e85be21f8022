import pytest

from serve.models.folder import scan
from tests.serve.conftest import write_artefact
from zoo.errors import ArtefactError
from zoo.files import sha256_file


def test_models_are_named_by_their_folder(output):
    artefacts = scan(output)
    assert list(artefacts) == ["good", "liar", "other", "other-int8", "torn"]
    assert artefacts["other-int8"].path == output / "other" / "model.int8.onnx"
    assert artefacts["other-int8"].file == "other/model.int8.onnx"


def test_half_precision_has_a_name_too(tmp_path):
    for file in ("model.onnx", "model.int8.onnx", "model.fp16.onnx"):
        write_artefact(tmp_path / "vit" / file)
    assert list(scan(tmp_path)) == ["vit", "vit-fp16", "vit-int8"]


@pytest.mark.parametrize(("file", "suffix"), [("model.int8.onnx", "-int8"), ("model.fp16.onnx", "-fp16")])
def test_a_folder_keeps_its_name_against_the_file_of_another(tmp_path, file, suffix):
    for path in (f"vit/{file}", f"vit{suffix}/model.onnx"):
        write_artefact(tmp_path / path)
    artefacts = scan(tmp_path)
    assert list(artefacts) == sorted([f"vit{suffix}", f"vit/{file}"])
    assert artefacts[f"vit{suffix}"].path == tmp_path / f"vit{suffix}" / "model.onnx"


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_nothing_is_found_in_nothing(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    assert scan(tmp_path / folder) == {}


def test_card_and_digest_are_of_the_file(tmp_path):
    path = write_artefact(tmp_path / "a" / "model.onnx", top1=0.5)
    artefact = scan(tmp_path)["a"]
    assert artefact.card().metrics("validation").top1 == 0.5
    assert artefact.digest() == sha256_file(path)
    assert artefact.bytes == path.stat().st_size


def test_what_cannot_be_read_says_so_each_time(output, tmp_path):
    torn = scan(output)["torn"]
    for _ in range(2):
        with pytest.raises(ArtefactError, match=r"torn/model\.onnx: not a"):
            torn.card()
    path = write_artefact(tmp_path / "a" / "model.onnx")
    artefact = scan(tmp_path)["a"]
    path.unlink()
    assert artefact.digest() is None


def test_a_changed_file_is_another_state(tmp_path):
    path = write_artefact(tmp_path / "a" / "model.onnx", seed=1)
    before = scan(tmp_path)["a"]
    assert scan(tmp_path)["a"].state == before.state
    write_artefact(path, seed=2)
    assert scan(tmp_path)["a"].state != before.state
    again = scan(tmp_path)["a"]
    again.expire()
    assert scan(tmp_path)["a"].state != again.state
