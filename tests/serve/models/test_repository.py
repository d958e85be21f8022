import gc
import shutil
import threading
import weakref

import numpy as np
import pytest

import serve.models.model
from serve.models.model import load_model
from serve.models.repository import Repository
from serve.protocols.http import Refused
from serve.settings import Settings
from tests.serve.conftest import write_artefact
from tests.serve.models.repositories import eventually, serving
from zoo.base.errors import ArtefactError, UsageError


@pytest.fixture
def models(tmp_path):
    """`a` is the default, `b` is another."""
    write_artefact(tmp_path / "a" / "model.onnx", seed=1, top1=0.9)
    write_artefact(tmp_path / "b" / "model.onnx", seed=2, top1=0.5)
    return tmp_path


def deploy(models, seed, name="a"):
    """Replace a model's file the way exporters do, and return the version."""
    return load_model(name, write_artefact(models / name / "model.onnx", seed=seed, top1=0.1), threads=1).version


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_nothing_to_serve_names_the_command(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"no artefact to serve: .*`make train compress export` writes them"):
        Repository(Settings(models=tmp_path / folder)).start()


def test_the_default_is_the_most_accurate_model_that_passes_its_check(output):
    with serving(output) as (repository, events):
        assert repository.default == "good"
        assert repository.names() == ("good", "liar", "other", "other-int8", "torn")
        assert repository.get(None).name == "good"
        # liar claims 0.99, so it was tried first; what nobody asks for is looked at when there is time.
        assert [event[:2] for event in events] == [("refused", "liar"), ("loaded", "good"), ("refused", "torn")]


def test_of_equally_accurate_models_the_smaller_file_is_the_default(tmp_path):
    for path in ("a/model.onnx", "b/model.int8.onnx", "c/model.onnx"):
        write_artefact(tmp_path / path, top1=0.5)
    # The folder's name is in the card.
    shutil.move(tmp_path / "a", tmp_path / "longer")
    write_artefact(tmp_path / "longest-of-all" / "model.onnx", top1=0.5)
    with serving(tmp_path) as (repository, _):
        assert repository.default == "b-int8"


def test_a_default_that_is_set_must_exist_and_work(output):
    with serving(output, default_model="other") as (repository, _):
        assert repository.default == "other"
    with pytest.raises(UsageError, match="POCKETZOO_DEFAULT_MODEL 'othre'; did you mean other"):
        Repository(Settings(models=output, default_model="othre")).start()
    with pytest.raises(ArtefactError, match=r"'liar' cannot be served: liar/model\.onnx: golden self-check failed"):
        Repository(Settings(models=output, default_model="liar")).start()


def test_no_model_works(output, tmp_path):
    for name in ("liar", "torn"):
        shutil.copytree(output / name, tmp_path / name)
    with pytest.raises(ArtefactError, match=r"none of the 2 artefacts can be served: liar: .*; torn: "):
        Repository(Settings(models=tmp_path)).start()


def test_what_is_not_in_memory_is_loaded_when_it_is_asked_for(models):
    with serving(models) as (repository, _):
        assert repository.get("b") is None
        model = repository.load("b")
        assert repository.get("b") is model is repository.get("b", model.version)


def test_unknown_names_and_versions_are_404(models, output):
    with serving(models) as (repository, _):
        for call in (repository.get, repository.load):
            with pytest.raises(Refused, match="unknown model 'bb'; did you mean b") as caught:
                call("bb")
            assert caught.value.status == 404
        assert repository.get("b", "0123456789ab") is None
        with pytest.raises(Refused, match="unknown version '0123456789ab' of 'b'") as caught:
            repository.load("b", "0123456789ab")
        assert caught.value.status == 404


def test_a_broken_model_is_503_with_its_reason(output):
    with serving(output) as (repository, _):
        for _ in range(2):
            with pytest.raises(Refused, match=r"'torn' cannot be served: torn/model\.onnx: not a") as caught:
                repository.load("torn")
            assert caught.value.status == 503
            assert str(output) not in str(caught.value)
        with pytest.raises(Refused, match="'torn' cannot be served"):
            repository.get("torn")


def test_threads_that_ask_at_once_load_a_model_once(models, monkeypatch):
    loads = []

    def load(name, path, **options):
        loads.append(name)
        return load_model(name, path, **options)

    monkeypatch.setattr(serve.models.model, "load_model", load)
    with serving(models) as (repository, _):
        found = []
        threads = [threading.Thread(target=lambda: found.append(repository.load("b"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert loads == ["a", "b"]
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_the_least_recently_used_model_makes_room(tmp_path):
    for index, name in enumerate("abcd"):
        write_artefact(tmp_path / name / "model.onnx", seed=index, top1=0.9 - index / 10)
    with serving(tmp_path, max_loaded=3) as (repository, events):
        gone = weakref.ref(repository.load("c"))
        repository.load("b")
        # The default is the oldest by now, but stays.
        repository.load("d")
        assert [repository.get(name) is not None for name in "abcd"] == [True, True, False, True]
        gc.collect()
        assert gone() is None
        assert [event[:2] for event in events][-2:] == [("unloaded", "c"), ("loaded", "d")]
        assert repository.load("c").name == "c"
        assert repository.get("b") is None


def test_a_swap_fails_no_request_and_mixes_no_versions(models):
    stop, failures, seen = threading.Event(), [], {}
    picture = np.ones((1, 3, 8, 8), np.float32)

    def hammer(repository):
        while not stop.is_set():
            try:
                model = repository.get("a") or repository.load("a")
                answers = [predictor.logits(picture) for predictor in (model.alone, model.shared)]
                seen.setdefault((model.version, model.digest), []).append(np.concatenate(answers))
            except Exception as error:
                failures.append(error)

    with serving(models, poll_seconds=0.01, threads=2) as (repository, _):
        threads = [threading.Thread(target=hammer, args=(repository,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        versions = [repository.get("a").version]
        for seed in range(10, 16):
            versions.append(deploy(models, seed))
            assert eventually(lambda: repository.get("a").version == versions[-1])
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    # A version may be replaced before any of the threads has got the processor.
    assert {version for version, _ in seen} <= set(versions)
    assert len(seen) > 1
    for answers in seen.values():
        np.testing.assert_allclose(np.concatenate(answers), answers[0][:1].repeat(2 * len(answers), axis=0), rtol=1e-4)


def test_every_worker_finds_a_new_file_by_itself(models):
    with serving(models, poll_seconds=0.02) as (one, _), serving(models, poll_seconds=0.02) as (two, _):
        version = deploy(models, 7)
        assert eventually(lambda: {one.get("a").version, two.get("a").version} == {version})


@pytest.mark.parametrize(("most", "kept"), [(3, "abc"), (2, "ab"), (1, "ab")])
def test_models_in_memory_are_counted_in_bytes_too(tmp_path, most, kept):
    """With one thread each has one session; the default stays, and what is asked for is loaded, whatever it takes."""
    for index, name in enumerate("abc"):
        write_artefact(tmp_path / name / "model.onnx", seed=index, top1=0.9 - index / 10)
    size = max(path.stat().st_size for path in tmp_path.glob("*/model.onnx"))
    with serving(tmp_path, loaded_bytes=most * size + size // 2) as (repository, _):
        assert repository.load("c").memory == (tmp_path / "c" / "model.onnx").stat().st_size
        assert repository.get("a") is not None
        repository.load("b")
        assert "".join(name for name in "abc" if repository.get(name) is not None) == kept
