"""Files that are checked in a process of their own: what they do there harms nobody."""

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import serve.models.checking
from serve.models.checking import Checks
from serve.models.folder import scan
from serve.models.known import Known
from serve.protocols.http import Refused
from serve.settings import Settings
from tests.serve.conftest import write_artefact
from tests.serve.models.repositories import eventually, serving
from tests.soak.hostile import write_endless, write_huge
from zoo.base.errors import ArtefactError, CheckError
from zoo.base.files import sha256_file


@pytest.fixture
def known(tmp_path):
    return Known(tmp_path / "known" / "models.json")


def checks(known, **settings):
    return Checks(Settings(**{"threads": 1, "check_seconds": 60.0, **settings}), known)


def test_a_file_that_passes_is_checked_once_on_this_machine(output, known, monkeypatch):
    artefact = scan(output)["good"]
    checks(known).passed(artefact)
    assert known.passed(artefact.path) == sha256_file(artefact.path)

    def never(*_, **__):
        raise AssertionError("was checked again")

    monkeypatch.setattr(serve.models.checking.subprocess, "Popen", never)
    checks(known).passed(artefact)
    checks(Known(known._path)).passed(artefact)
    monkeypatch.setattr(serve.models.known, "_environment", lambda: "another engine")
    with pytest.raises(AssertionError, match="was checked again"):
        checks(Known(known._path)).passed(artefact)


def test_what_fails_there_is_the_same_error_here(output, known):
    with pytest.raises(CheckError, match=r"liar/model\.onnx: golden self-check failed: expected"):
        checks(known).passed(scan(output)["liar"])
    with pytest.raises(ArtefactError, match=r"torn/model\.onnx: not a readable ONNX file"):
        checks(known).passed(scan(output)["torn"])
    assert known.passed(output / "liar" / "model.onnx") is None


def test_a_process_that_dies_is_a_sentence(output, known, monkeypatch):
    artefact = scan(output)["other"]
    for code, why in (("import os; os.abort()", "SIGABRT"), ("import sys; sys.exit(3)", "exit code 3")):
        monkeypatch.setattr(serve.models.checking.sys, "executable", _python_that_runs(known._path.parent, code))
        with pytest.raises(ArtefactError, match=f"the process that checked it ended with {why}, of too little memory"):
            checks(known).passed(artefact)


def _python_that_runs(folder: Path, code):
    folder.mkdir(exist_ok=True)
    script = folder / "python"
    script.write_text(f"#!{shutil.which('python3')}\n{code}\n")
    script.chmod(0o700)
    return str(script)


def test_a_graph_that_never_ends_keeps_nobody_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(serve.models.loader, "Known", lambda: Known(tmp_path / "known" / "models.json"))
    models = tmp_path / "models"
    write_artefact(models / "a" / "model.onnx", seed=1, top1=0.9)
    write_artefact(models / "b" / "model.onnx", seed=2, top1=0.5)
    with serving(models, check_seconds=5.0, poll_seconds=0.05) as (repository, events):
        write_endless(models / "endless" / "model.onnx")
        write_endless(models / "a" / "model.onnx")
        assert eventually(lambda: "endless" in repository.names())
        # Meanwhile another model is loaded and swapped.
        old = repository.load("b").version
        write_artefact(models / "b" / "model.onnx", seed=3)
        assert eventually(lambda: repository.get("b").version != old)
        assert eventually(lambda: {("refused", "a"), ("refused", "endless")} <= {event[:2] for event in events})
        assert repository.get("a") is not None
        with pytest.raises(
            Refused, match=r"'endless' cannot be served: .*did not end within 5 s \(POCKETZOO_CHECK_SEC"
        ):
            repository.load("endless")


def test_a_graph_that_takes_all_memory_ends_its_own_process(tmp_path, known):
    write_huge(tmp_path / "a" / "model.onnx")
    with pytest.raises(ArtefactError, match=r"a/model\.onnx: (cannot be loaded|the process that checked it ended)"):
        checks(known).passed(scan(tmp_path)["a"])


def test_stopping_ends_a_check(tmp_path, known):
    write_endless(tmp_path / "a" / "model.onnx")
    one = checks(known)
    running = one.begin(scan(tmp_path)["a"], soon=True)
    assert eventually(lambda: bool(one._running))
    begun = time.monotonic()
    one.stop()
    with pytest.raises(ArtefactError, match="ended with SIGKILL"):
        running.result(10)
    assert time.monotonic() - begun < 10


def test_a_check_that_is_called_off_is_a_sentence(tmp_path, known, monkeypatch):
    monkeypatch.setattr(serve.models.checking, "_AT_ONCE", 1)
    for name in "ab":
        write_endless(tmp_path / name / "model.onnx")
    one, before = checks(known), scan(tmp_path)
    one.begin(before["a"], soon=True)
    waiting = one.begin(before["b"], soon=True)
    write_artefact(tmp_path / "b" / "model.onnx", seed=1)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(one.wait, before["b"], soon=True)
        time.sleep(0.3)
        one.begin(scan(tmp_path)["b"], soon=True)
        with pytest.raises(ArtefactError, match="was changed while it was checked"):
            asked.result(10)
    assert waiting.cancelled()
    one.stop()


def test_a_changed_file_is_not_known(tmp_path, known):
    path = tmp_path / "file"
    path.write_bytes(b"a")
    times = path.stat()
    known.note_passed(path, known.digest(path))
    path.write_bytes(b"b")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert known.passed(path) is None
    assert known.digest(path) == sha256_file(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", json.dumps({"a": 1}).encode()])
def test_what_was_kept_and_is_broken_is_found_out_again(tmp_path, known, content):
    known._path.parent.mkdir(mode=0o700)
    known._path.write_bytes(content)
    (tmp_path / "file").write_bytes(b"a")
    assert known.digest(tmp_path / "file") == sha256_file(tmp_path / "file")
    assert Known(known._path)._entries == {}


def test_what_others_may_have_written_is_not_believed(tmp_path, known):
    (tmp_path / "file").write_bytes(b"a")
    known.note_passed(tmp_path / "file", "0" * 64)
    assert Known(known._path).passed(tmp_path / "file") == "0" * 64
    known._path.parent.chmod(0o777)
    assert Known(known._path).passed(tmp_path / "file") is None
    assert Known(known._path).digest(tmp_path / "file") == sha256_file(tmp_path / "file")
