"""Atomic writes, digests and the paths of artefacts."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.base.errors import ArtefactError
from zoo.base.files import (
    cache_folder,
    checkpoint_path,
    code_commit,
    graph_paths,
    output_root,
    sha256_file,
    write_atomically,
    write_bytes,
)

_DYING_WRITER = """
import os, signal, sys
from pathlib import Path
from zoo.base.files import write_atomically

def write(path):
    path.write_bytes(b"half")
    {death}

write_atomically(Path(sys.argv[1]), write)
"""


def test_writes_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_bytes(path, b"one")
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("death", "code"), [("os._exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", -9)], ids=["exit", "sigkill"]
)
def test_killed_writer_leaves_the_old_file(tmp_path, death, code):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", _DYING_WRITER.format(death=death), str(path)], check=False)
    assert done.returncode == code
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file.bin", b"")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.bin").stat().st_mode) == 0o666 & ~umask


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_output_root_is_the_variable_or_below_the_working_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "elsewhere"))
    assert output_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("POCKETZOO_OUTPUT")
    monkeypatch.chdir(tmp_path)
    assert output_root() == tmp_path / "output"


def test_files_are_flushed_through_a_descriptor_that_can_write(tmp_path, monkeypatch):
    # As Windows does, whose _commit() answers EBADF for a descriptor that was opened for reading.
    def fsync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes(tmp_path / "file.bin", b"content")
    assert (tmp_path / "file.bin").read_bytes() == b"content"


def test_a_repository_around_installed_packages_is_not_the_code_commit(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    packages = tmp_path / "venv" / "site-packages"
    packages.mkdir(parents=True)
    monkeypatch.setattr("zoo.base.files.PROJECT", packages)
    code_commit.cache_clear()
    assert code_commit() is None
    code_commit.cache_clear()


def test_checkpoint_path_takes_the_folder_or_the_file(tmp_path):
    with pytest.raises(ArtefactError, match=r"no checkpoint at .*model\.safetensors; `pocketzoo train` writes one"):
        checkpoint_path(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert checkpoint_path(tmp_path) == checkpoint_path(file) == file


def test_graph_paths_are_those_that_exist(tmp_path):
    with pytest.raises(ArtefactError, match=r"no ONNX file at .*; `pocketzoo export .*` writes one"):
        graph_paths(tmp_path)
    int8, plain = tmp_path / "model.int8.onnx", tmp_path / "model.onnx"
    int8.write_bytes(b"")
    assert graph_paths(tmp_path) == [int8]
    plain.write_bytes(b"")
    assert graph_paths(tmp_path) == [plain, int8]
    assert graph_paths(int8) == [int8]


def test_code_commit_is_a_short_hash_with_or_without_dirty():
    commit = code_commit()
    assert commit is None or set(commit.removesuffix("-dirty")) <= set("0123456789abcdef")


def test_a_place_that_cannot_be_written_has_its_own_remedy(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtefactError, match="name a folder that can be, then run the same command again"):
        write_bytes(tmp_path / "file" / "x.png", b"")


@pytest.mark.parametrize(
    ("platform", "variables", "place"),
    [
        ("linux", {}, "{home}/.cache/pocketzoo"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/pocketzoo"),
        ("darwin", {}, "{home}/Library/Caches/pocketzoo"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/pocketzoo"),
        ("win32", {}, "{home}/AppData/Local/pocketzoo"),
        ("linux", {"POCKETZOO_CACHE": "/c", "XDG_CACHE_HOME": "/x"}, "/c"),
    ],
)
def test_the_folder_of_caches_is_the_platforms(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, variables: dict[str, str], place: str
) -> None:
    for name in ("POCKETZOO_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(place.format(home=tmp_path))
