import shutil
import threading

import pytest

import serve.repository
from serve.repository import Repository, scan
from tests.serve.conftest import write_artefact
from zoo.errors import ArtefactError, UsageError
from zoo.files import sha256_file
from zoo.predictor import Predictor


def test_scan_names_models_by_folder(output):
    models = scan(output)
    assert list(models) == ["good", "liar", "other", "other-int8", "torn"]
    assert models["other-int8"].path == output / "other" / "model.int8.onnx"
    assert [name for name, served in models.items() if served.error] == ["torn"]
    assert not any(served.loaded for served in models.values())


def test_a_folder_keeps_its_name_against_the_int8_file_of_another(tmp_path):
    for file in ("vit/model.int8.onnx", "vit-int8/model.onnx"):
        write_artefact(tmp_path / file)
    models = scan(tmp_path)
    assert list(models) == ["vit-int8", "vit/model.int8.onnx"]
    assert models["vit-int8"].path == tmp_path / "vit-int8" / "model.onnx"


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_nothing_to_serve_names_the_command(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"no artefact to serve: .*`make train compress export` writes them"):
        scan(tmp_path / folder)


def test_the_default_is_the_most_accurate_model_that_passes_its_check(output):
    repository = Repository(scan(output))
    assert repository.default == "good"
    # liar claims 0.99, so it was tried first.
    assert "golden self-check failed" in repository.models["liar"].reason
    assert [name for name, served in repository.models.items() if served.loaded] == ["good"]


def test_of_equally_accurate_models_the_smaller_file_is_the_default(tmp_path):
    write_artefact(tmp_path / "a" / "model.onnx", top1=0.5)
    smaller = write_artefact(tmp_path / "b" / "model.int8.onnx", top1=0.5)
    models = scan(tmp_path)
    models["a"].bytes = smaller.stat().st_size + 1
    assert Repository(models).default == "b-int8"


def test_a_default_that_is_set_must_exist_and_work(output):
    assert Repository(scan(output), default="other").default == "other"
    with pytest.raises(UsageError, match="POCKETZOO_DEFAULT_MODEL 'othre'; did you mean other"):
        Repository(scan(output), default="othre")
    with pytest.raises(ArtefactError, match=r"'liar' cannot be served: liar/model\.onnx: golden self-check failed"):
        Repository(scan(output), default="liar")


def test_no_model_works(output, tmp_path):
    for name in ("liar", "torn"):
        shutil.copytree(output / name, tmp_path / name)
    with pytest.raises(ArtefactError, match=r"none of the 2 artefacts can be served: liar: .*; torn: "):
        Repository(scan(tmp_path))


def test_get_finds_the_default_a_name_or_close_matches(output):
    repository = Repository(scan(output))
    assert repository.get(None).name == "good"
    assert repository.get("other-int8").name == "other-int8"
    with pytest.raises(UsageError, match="unknown model 'goood'; did you mean good"):
        repository.get("goood")


def test_threads_that_ask_at_once_load_a_model_once(output, monkeypatch):
    loads = []

    def load(path, **options):
        loads.append(path)
        return Predictor(path, **options)

    monkeypatch.setattr(serve.repository, "Predictor", load)
    served = scan(output, threads=1)["good"]
    found = []
    threads = [threading.Thread(target=lambda: found.append(served.predictor())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_file_that_vanishes_is_an_error_of_its_model(tmp_path):
    path = write_artefact(tmp_path / "a" / "model.onnx")
    served = scan(tmp_path)["a"]
    path.unlink()
    assert served.digest() is None
    with pytest.raises(ArtefactError, match="'a' cannot be served: no ONNX file"):
        served.predictor()


def test_the_digest_is_the_loaded_file_s(tmp_path):
    path = write_artefact(tmp_path / "a" / "model.onnx", seed=1)
    served = scan(tmp_path)["a"]
    digest = sha256_file(path)
    assert served.digest() == digest
    served.predictor()
    write_artefact(path, seed=2)
    assert served.digest() == digest != sha256_file(path)
