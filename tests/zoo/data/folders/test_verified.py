"""What is remembered of files that were decoded."""

from __future__ import annotations

import hashlib
import os
import sqlite3

import pytest

from tests.zoo.factories import encode, picture
from zoo.data.folders import verified
from zoo.data.folders.verified import verify


@pytest.fixture
def files(tmp_path, output):
    """Names and paths of eight images."""
    for index in range(8):
        (tmp_path / f"{index}.png").write_bytes(encode(picture(index)))
    return [(f"{index}.png", str(tmp_path / f"{index}.png")) for index in range(8)]


@pytest.fixture
def read(monkeypatch):
    """Paths that are decoded."""
    found: list[str] = []
    original = verified._verify_one
    monkeypatch.setattr(verified, "_verify_one", lambda path: found.append(path) or original(path))
    return found


def _memory(output) -> list[tuple[str, str]]:
    (path,) = (output / ".index").iterdir()
    with sqlite3.connect(path) as table:
        rows = table.execute("SELECT name, digest FROM good ORDER BY name").fetchall()
    table.close()
    return [(name, digest.hex()) for name, digest in rows]


def test_every_file_is_decoded_once_and_remembered(files, tmp_path, output, read):
    first = list(verify(files, tmp_path))
    assert [verdict.digest for verdict in first] == [
        hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name, _ in files
    ]
    assert sorted(read) == [path for _, path in files]
    assert _memory(output) == [(name, found.digest) for (name, _), found in zip(files, first, strict=True)]
    read.clear()
    assert list(verify(files, tmp_path)) == first and read == []
    changed = tmp_path / "3.png"
    changed.write_bytes(encode(picture(555)))
    os.utime(changed, ns=(1, 1))
    assert list(verify(files, tmp_path))[3].digest != first[3].digest and read == [str(changed)]


def test_what_is_wrong_is_said_and_not_remembered(files, tmp_path, output, read):
    (tmp_path / "1.png").write_bytes(b"junk")
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    (tmp_path / "4.png").unlink()
    os.mkfifo(tmp_path / "5.pipe")
    found = list(verify([*files, ("5.pipe", str(tmp_path / "5.pipe"))], tmp_path))
    assert [place for place, verdict in enumerate(found) if verdict.problem] == [1, 2, 4, 8]
    assert [verdict.missing for verdict in found] == [False] * 4 + [True] + [False] * 4
    assert found[1].problem.startswith("cannot decode the image")
    assert found[8].problem == "no regular file"
    assert len(_memory(output)) == 5


def test_an_interrupted_verification_goes_on(files, tmp_path, output, read, monkeypatch):
    monkeypatch.setattr(verified, "_CHUNK", 2)
    begun = verify(files, tmp_path)
    assert [next(begun).problem for _ in range(3)] == ["", "", ""]
    begun.close()
    assert len(_memory(output)) == 4
    read.clear()
    assert len(list(verify(files, tmp_path))) == 8
    assert len(read) == 4


@pytest.mark.parametrize("content", [b"{", b"no table, but long enough to look like one" * 100, b""])
def test_a_broken_memory_is_made_anew(files, tmp_path, output, content):
    first = list(verify(files, tmp_path))
    (memory,) = (output / ".index").iterdir()
    memory.write_bytes(content)
    assert list(verify(files, tmp_path)) == first
    assert len(_memory(output)) == 8


def test_without_a_place_for_the_memory_it_goes_on_and_says_so(files, tmp_path, output, capsys):
    (output / ".index").write_text("a file")
    assert [verdict.problem for verdict in verify(files, tmp_path)] == [""] * 8
    assert "cannot be used" in capsys.readouterr().err


def test_two_runs_at_once_share_it(files, tmp_path, output):
    one, other = verify(files, tmp_path), verify(files, tmp_path)
    pairs = list(zip(one, other, strict=True))
    assert len(pairs) == 8 and all(left == right for left, right in pairs)
    assert len(_memory(output)) == 8
