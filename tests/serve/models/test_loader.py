import dataclasses
import os
import shutil
from pathlib import Path

import onnx
import pytest

import serve.models.model
from serve.models.model import load_model
from serve.models.repository import Repository
from serve.protocols.http import Refused
from serve.settings import Settings
from tests.serve.conftest import change_a_weight, write_artefact
from tests.serve.models.repositories import eventually, serving
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import KEY
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError, CheckError


@pytest.fixture
def models(tmp_path):
    write_artefact(tmp_path / "a" / "model.onnx", seed=1, top1=0.9)
    write_artefact(tmp_path / "b" / "model.onnx", seed=2, top1=0.5)
    return tmp_path


def _half(path):
    content = write_artefact(path.parent / "whole.onnx", seed=9, top1=0.9).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _tampered(path):
    content = bytearray(write_artefact(path.parent / "whole.onnx", seed=9, top1=0.9).read_bytes())
    # In the middle of the weights.
    at = content.index(b"MatMul") + 200
    content[at : at + 1200] = bytes(1200)
    path.write_bytes(content)


def _slightly_changed(path):
    change_a_weight(path)
    # The golden answer is still the one of the card: only the network's digest notices.
    model = onnx.load_model(path)
    card = graph.from_json(next(entry.value for entry in model.metadata_props if entry.key == KEY), where="test")
    unsealed = dataclasses.replace(card, inform=dataclasses.replace(card.inform, graph=None))
    bare = path.parent / "bare.onnx"
    onnx.save_model(graph.stamp(model, unsealed), bare)
    Predictor(bare, threads=1)


_BREAK = {
    "slightly changed": _slightly_changed,
    "half-written": _half,
    "tampered": _tampered,
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(bytes(range(256)) * 40),
    "lying": lambda path: write_artefact(path, seed=9, top1=0.9, spoil_golden=True),
}


@pytest.mark.parametrize("how", sorted(_BREAK))
def test_a_broken_file_leaves_the_old_version_serving(models, how):
    path = models / "a" / "model.onnx"
    with serving(models) as (repository, events):
        old = repository.get("a")
        _BREAK[how](path)
        repository.look()
        assert repository.get("a") is old
        entry = repository.describe()["models"][0]
        assert (entry["version"], entry["loaded"]) == (old.version, True)
        assert entry["error"].startswith("a/model.onnx: ")
        assert events[-1] == ("refused", "a", entry["error"])
        # It is tried again, and told of, when it changes.
        repository.look()
        assert [event[:2] for event in events].count(("refused", "a")) == 1
        write_artefact(path, seed=3)
        repository.look()
        assert repository.get("a").version != old.version
        assert repository.describe()["models"][0]["error"] is None


def test_a_few_changed_bytes_of_a_weight_are_refused_in_a_sentence(models):
    path = models / "a" / "model.onnx"
    with serving(models) as (repository, _):
        old = repository.get("a")
        _slightly_changed(path)
        repository.look()
        reason = repository.describe()["models"][0]["error"]
        assert reason.startswith("a/model.onnx: its network is not the one that its card was written with (SHA-256); ")
        assert repository.get("a") is old
    with pytest.raises(ArtefactError, match="its network is not the one"), serving(models, default_model="a"):
        pass
    with pytest.raises(CheckError, match="its network is not the one"):
        load_model("a", path)


@pytest.mark.parametrize("poll_seconds", [0, 0.01])
def test_files_that_nobody_asked_for_are_told_of_once_where_they_are_broken(models, poll_seconds):
    path = models / "b" / "model.onnx"
    with serving(models, poll_seconds=poll_seconds, default_model="a") as (repository, events):
        assert [event for event in events if event[0] == "refused"] == []
        for times, how in ((1, _slightly_changed), (2, _BREAK["garbage"])):
            # A file that is written in place may be looked at while it is empty, which is told, too.
            how(Path(shutil.copyfile(path, path.parent / "next.onnx")))
            (path.parent / "next.onnx").replace(path)
            for _ in range(3):
                repository.look()
                reason = repository.describe()["models"][1]["error"]
                assert reason.startswith("b/model.onnx: ")
            with pytest.raises(Refused, match="'b' cannot be served"):
                repository.load("b")
            assert [event for event in events if event[0] == "refused"][-1] == ("refused", "b", reason)
            assert [event[:2] for event in events].count(("refused", "b")) == times
        write_artefact(path, seed=3)
        repository.look()
        assert repository.describe()["models"][1]["error"] is None
        assert repository.load("b").name == "b"


def test_a_file_that_is_broken_from_the_start_is_told_of(models):
    (models / "b" / "model.onnx").write_bytes(b"broken")
    with serving(models, poll_seconds=0.01, default_model="a") as (_, events):
        assert eventually(lambda: ("refused", "b") in [event[:2] for event in events])


def test_what_is_left_out_of_the_folder_is_told_once(models):
    write_artefact(models / "bad:name" / "model.onnx", seed=3, top1=0.99)
    (models / "c").mkdir()
    (models / "c" / "model.onnx").symlink_to(os.devnull)
    with serving(models) as (repository, events):
        assert repository.default == "a"
        for _ in range(2):
            repository.look()
        assert [event[:2] for event in events if event[0] == "refused"] == [
            ("refused", "bad:name"),
            ("refused", "c/model.onnx"),
        ]
        assert repository.names() == ("a", "b")


def test_a_file_that_is_broken_and_then_mended_is_served(models, output):
    shutil.copytree(output / "torn", models / "c")
    with serving(models) as (repository, _):
        with pytest.raises(Refused, match="'c' cannot be served"):
            repository.load("c")
        write_artefact(models / "c" / "model.onnx", seed=3)
        repository.look()
        assert repository.load("c").name == "c"


def test_a_look_finds_what_is_new_changed_and_gone(models):
    with serving(models) as (repository, events):
        write_artefact(models / "c" / "model.int8.onnx", seed=3)
        write_artefact(models / "b" / "model.onnx", seed=4)
        old = repository.load("b").version
        repository.look()
        assert repository.names() == ("a", "b", "c-int8")
        assert repository.get("b").version == old
        write_artefact(models / "b" / "model.onnx", seed=5)
        repository.look()
        assert events[-1] == ("swapped", "b", f"from {old} to {repository.get('b').version}")
        shutil.rmtree(models / "b")
        repository.look()
        assert repository.get("b") is not None
        repository.look()
        assert events[-1] == ("unloaded", "b", "its file is gone")
        with pytest.raises(Refused, match="unknown model 'b'"):
            repository.get("b")


def test_a_file_with_the_same_content_is_not_loaded_again(models):
    with serving(models) as (repository, events):
        old = repository.get("a")
        write_artefact(models / "a" / "model.onnx", seed=1, top1=0.9)
        repository.look()
        assert repository.get("a") is old
        assert [kind for kind, *_ in events] == ["loaded"]


def test_a_file_must_be_gone_twice(models):
    path = models / "b" / "model.onnx"
    with serving(models) as (repository, _):
        repository.load("b")
        path.rename(models / "elsewhere.onnx")
        repository.look()
        (models / "elsewhere.onnx").rename(path)
        repository.look()
        path.unlink()
        repository.look()
        assert repository.names() == ("a", "b")
        repository.look()
        assert repository.names() == ("a",)


def test_a_default_that_is_gone_answers_until_another_can(models):
    with serving(models) as (repository, _):
        old = repository.get(None)
        shutil.rmtree(models / "a")
        (models / "b" / "model.onnx").rename(models / "b" / "good.onnx")
        (models / "b" / "model.onnx").write_bytes(b"broken")
        for _ in range(3):
            repository.look()
            assert repository.get(None) is old
        (models / "b" / "good.onnx").replace(models / "b" / "model.onnx")
        repository.look()
        assert (repository.default, repository.get(None).name) == ("b", "b")


def test_a_default_that_was_set_by_name_stays(models):
    with serving(models, default_model="a") as (repository, _):
        shutil.rmtree(models / "a")
        for _ in range(3):
            repository.look()
        assert repository.get(None).name == "a"


def test_an_empty_folder_takes_nothing_away(models, tmp_path):
    with serving(models) as (repository, _):
        models.rename(tmp_path.parent / f"{tmp_path.name}-unmounted")
        for _ in range(3):
            repository.look()
        assert repository.get(None).name == "a"
        assert repository.names() == ("a", "b")


def test_a_file_that_is_still_being_written_is_tried_again_without_a_word(models, monkeypatch):
    path = models / "a" / "model.onnx"
    with serving(models) as (repository, events):
        old = repository.get("a").version
        whole = write_artefact(models / "a" / "whole.onnx", seed=3).read_bytes()
        path.write_bytes(whole[:100])

        def load(name, path, **options):
            monkeypatch.setattr(serve.models.model, "load_model", load_model)
            try:
                return load_model(name, path, **options)
            finally:
                path.write_bytes(whole)

        monkeypatch.setattr(serve.models.model, "load_model", load)
        repository.look()
        assert repository.get("a").version == old
        assert "refused" not in [kind for kind, *_ in events]
        repository.look()
        assert repository.get("a").version != old


@pytest.mark.parametrize("loaded", [True, False])
def test_the_old_file_put_back_is_served_again(models, loaded):
    path = models / "b" / "model.onnx"
    with serving(models) as (repository, _):
        old = repository.load("b") if loaded else None
        kept = path.read_bytes()
        write_artefact(path, seed=3)
        repository.look()
        newer = repository.load("b")
        path.write_bytes(b"broken")
        repository.look()
        assert repository.get("b") is newer
        path.write_bytes(kept)
        repository.look()
        assert repository.describe()["models"][1]["error"] is None
        assert repository.get("b").version == (old or load_model("b", path)).version != newer.version


def test_a_version_whose_file_is_broken_by_now_stays_in_memory(models):
    write_artefact(models / "c" / "model.onnx", seed=3)
    with serving(models, max_loaded=2) as (repository, events):
        old = repository.load("b")
        (models / "b" / "model.onnx").write_bytes(b"broken")
        repository.look()
        repository.load("c")
        assert repository.get("b") is old
        assert "unloaded" not in [kind for kind, *_ in events]


def test_a_passing_error_is_tried_again(models, monkeypatch):
    with serving(models) as (repository, events):
        old = repository.get("a").version
        write_artefact(models / "a" / "model.onnx", seed=3)

        def fail(name, path, **options):
            raise ArtefactError(f"{path}: cannot be loaded: too many open files") from OSError(
                24, "too many open files"
            )

        monkeypatch.setattr(serve.models.model, "load_model", fail)
        for _ in range(3):
            repository.look()
            error = repository.describe()["models"][0]["error"]
            assert error == "a/model.onnx: cannot be loaded: too many open files"
        assert [kind for kind, *_ in events].count("refused") == 1
        monkeypatch.undo()
        repository.look()
        assert repository.get("a").version != old


def test_a_listener_that_fails_does_no_harm(models, caplog):
    def listen(kind, name, detail):
        raise RuntimeError("deaf")

    repository = Repository(Settings(models=models, poll_seconds=0), on_event=listen)
    repository.start()
    repository.stop()
    assert repository.get(None).name == "a"
    assert "cannot be reported" in caplog.text


def test_the_thread_survives_what_nobody_expected(models, monkeypatch, caplog):
    def broken(root, known):
        monkeypatch.undo()
        raise RuntimeError("unexpected")

    with serving(models, poll_seconds=0.01) as (repository, _):
        monkeypatch.setattr(serve.models.loader, "look_through", broken)
        assert eventually(lambda: "cannot look for changes" in caplog.text)
        write_artefact(models / "c" / "model.onnx", seed=3)
        assert eventually(lambda: "c" in repository.names())
