import os

import pytest

from serve.models.folder import look_through, scan
from tests.serve.conftest import write_artefact
from zoo.base.errors import ArtefactError
from zoo.base.files import sha256_file


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


def test_links_are_followed_to_files_of_known_names_only(tmp_path):
    root, elsewhere = tmp_path / "models", tmp_path / "elsewhere"
    real = write_artefact(elsewhere / "v3" / "model.onnx")
    secret = elsewhere / "secret.txt"
    secret.write_text("secret")
    for name in ("file", "secret", "device", "pipe", "nowhere", "circle", "folder-of-it"):
        (root / name).mkdir(parents=True)
    (root / "folder").symlink_to(real.parent)
    (root / "file" / "model.int8.onnx").symlink_to(real)
    (root / "secret" / "model.onnx").symlink_to(secret)
    (root / "device" / "model.onnx").symlink_to("/dev/zero")
    os.mkfifo(root / "pipe" / "model.onnx")
    (root / "nowhere" / "model.fp16.onnx").symlink_to(elsewhere / "gone")
    (root / "circle" / "model.onnx").symlink_to(root / "circle" / "model.onnx")
    (root / "folder-of-it" / "model.onnx").mkdir()
    found = look_through(root)
    assert list(found.artefacts) == ["file-int8", "folder"]
    assert found.artefacts["folder"].digest() == sha256_file(real)
    assert {name: reason.removeprefix(f"{name}: ")[:28] for name, reason in found.left_out.items()} == {
        "secret/model.onnx": "it is a link to a file of an",
        "device/model.onnx": "expected a regular file, whi",
        "pipe/model.onnx": "expected a regular file, whi",
        "nowhere/model.fp16.onnx": "it is a link to nothing",
        "circle/model.onnx": "it cannot be looked at (Too ",
        "folder-of-it/model.onnx": "expected a regular file, whi",
    }


def test_a_link_that_is_bent_later_is_not_opened(tmp_path):
    write_artefact(tmp_path / "a" / "model.onnx")
    artefact = scan(tmp_path)["a"]
    (tmp_path / "secret.txt").write_text("secret")
    artefact.path.unlink()
    artefact.path.symlink_to(tmp_path / "secret.txt")
    assert artefact.digest() is None
    with pytest.raises(ArtefactError, match=r"a/model\.onnx: it is a link to a file of another name"):
        artefact.card()


@pytest.mark.parametrize("name", ["bad:name", "two\nlines", "bell\a", " before", "after ", "x" * 129, "\udcff"])
def test_names_that_no_route_can_express_are_left_out(tmp_path, name):
    write_artefact(tmp_path / "a" / "model.onnx")
    (tmp_path / "a").rename(tmp_path / name)
    found = look_through(tmp_path)
    assert found.artefacts == {}
    ((shown, reason),) = found.left_out.items()
    assert shown.isprintable()
    assert len(shown) <= 128
    assert shown in reason or repr(shown) in reason


@pytest.mark.parametrize("name", ["x" * 128, "Katze 7", "größe_1.5", "a%20b"])
def test_unusual_names_are_served(tmp_path, name):
    write_artefact(tmp_path / name / "model.onnx")
    assert list(scan(tmp_path)) == [name]
