"""What a folder, a glob and a file name, in which order, and what is left out."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import fsspec
import pytest

import serve.bulk.listing
from serve.bulk.listing import listed, located, shown
from zoo.base.errors import DataError, UsageError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def _names(root: Path, pattern: str, *, out: str = "") -> tuple[list[str], dict[str, int]]:
    passed: Counter[str] = Counter()
    _, found = listed(f"{root}/{pattern}", passed, out=out)
    return [Path(one.path).relative_to(root).as_posix() for one in found], dict(passed)


def test_a_folder_means_its_files_by_their_whole_paths(tmp_path):
    _touch(tmp_path, "b.png", "a/z.JPG", "a.png", "a-b.png", "a/.hidden.png", ".git/c.png", "notes.txt")
    names, passed = _names(tmp_path, "")
    assert names == sorted(names) == ["a-b.png", "a.png", "a/z.JPG", "b.png", "notes.txt"]
    assert passed == {"hidden": 2}


def test_a_large_folder_is_sorted_window_by_window(tmp_path, monkeypatch):
    monkeypatch.setattr(serve.bulk.listing, "_WINDOW", 4)
    _touch(tmp_path, *(f"{number}.png" for number in range(10)))
    with os.scandir(tmp_path) as entries:
        order = [entry.name for entry in entries]
    assert _names(tmp_path, "")[0] == [*sorted(order[:4]), *sorted(order[4:8]), *sorted(order[8:])]


def test_globs(tmp_path, monkeypatch):
    _touch(tmp_path, "1.png", "2.dat", "deep/3.png", "deep/er/4.png", "deep/er/5.dat", "else/6.png")
    assert _names(tmp_path, "*.*")[0] == ["1.png", "2.dat"]
    assert _names(tmp_path, "**/*.png")[0] == ["1.png", "deep/3.png", "deep/er/4.png", "else/6.png"]
    assert _names(tmp_path, "deep/**/*.dat")[0] == ["deep/er/5.dat"]
    assert _names(tmp_path, "*/[3-5].png")[0] == ["deep/3.png"]
    assert _names(tmp_path, "1.png")[0] == ["1.png"]
    monkeypatch.chdir(tmp_path)
    assert [one.path for one in listed("*.png", Counter())[1]] == ["1.png"]
    with pytest.raises(UsageError, match=r"`\*\*` stands alone"):
        _names(tmp_path, "**.png")


def test_only_folders_that_may_match_are_listed(tmp_path, monkeypatch):
    _touch(tmp_path, "a/front/1.png", "a/back/2.png", "b/front/deep/3.png")
    scandir, seen = os.scandir, []

    def watched(path):
        seen.append(Path(path).relative_to(tmp_path).as_posix())
        return scandir(path)

    monkeypatch.setattr(os, "scandir", watched)
    assert _names(tmp_path, "*/front/*.png")[0] == ["a/front/1.png"]
    assert seen == [".", "a", "a/front", "b", "b/front"]


def test_a_link_upwards_lists_nothing_twice(tmp_path):
    _touch(tmp_path, "a.png", "b/c.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "d.png").symlink_to(tmp_path / "a.png")
    assert _names(tmp_path, "**/*.png") == (["a.png", "b/c.png", "d.png"], {"links to folders": 1})


def test_the_result_is_no_part_of_its_source(tmp_path):
    _touch(tmp_path, "a.png", "out/part-00000.parquet")
    assert _names(tmp_path, "", out=str(tmp_path / "out"))[0] == ["a.png"]


def test_a_name_with_brackets_is_a_name_if_it_exists(tmp_path):
    _touch(tmp_path, "set[1]/1.png", "set1/2.png")
    assert _names(tmp_path, "set[1]")[0] == ["set[1]/1.png"]


def test_names_that_are_not_unicode_are_escaped(tmp_path):
    place = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(place)).write_bytes(b"x")
    (found,) = listed(str(tmp_path), Counter())[1]
    assert os.fsencode(found.path) == place and shown(found.path).endswith("\\xff.png")


def test_the_state_is_of_size_and_time(tmp_path):
    _touch(tmp_path, "1.png")

    def state() -> str:
        (found,) = listed(str(tmp_path), Counter())[1]
        return found.state()

    first = state()
    assert state() == first
    os.utime(tmp_path / "1.png", ns=(1, 1))
    second = state()
    (tmp_path / "1.png").unlink()
    (tmp_path / "1.png").symlink_to("gone")
    assert len({first, second, state()}) == 3


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    _touch(tmp_path, "b.png", "closed/a.png")
    scandir = os.scandir

    def refuse(path):
        # The user who runs the tests may be allowed everything.
        if "closed" in path:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/closed/: the folder cannot be read \(Permission denied\)"):
        _names(tmp_path, "")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("missing", DataError, "nothing is there; name a folder, a glob in quotes"),
        ("missing/*.png", DataError, "there is no folder"),
        ("memory://gone", DataError, "cannot be listed .*FileNotFoundError"),
        ("nothing://here", DataError, "Protocol not known: nothing"),
    ],
)
def test_nothing_there_is_a_sentence(tmp_path, text, kind, message):
    with pytest.raises(kind, match=message):
        list(listed(text if "://" in text else f"{tmp_path}/{text}", Counter())[1])


def test_a_protocol_without_its_package(monkeypatch):
    def missing(*given: object, **options: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UsageError, match=r"Install s3fs to access S3; `pip install 'pocketzoo\[s3\]'`"):
        located("s3://bucket/key")


@pytest.fixture
def store():
    """A file system of fsspec that is in memory."""
    system = fsspec.filesystem("memory")
    for name in ("b.png", "a/z.png", "a-b.png", "a/.hidden.png", "out/part-00000.parquet"):
        system.pipe_file(f"/photos/{name}", name.encode())
    yield system
    system.rm("/photos", recursive=True)


def test_stores_are_listed_like_folders(store):
    passed: Counter[str] = Counter()
    named, found = listed("memory://photos", passed, out="memory://photos/out")
    assert [one.path for one in found] == [f"memory://photos/{name}" for name in ("a-b.png", "a/z.png", "b.png")]
    assert (named, passed) == (False, {"hidden": 1})
    named, found = listed("memory://photos/**/[az]*.png", passed)
    assert named and [one.path for one in found] == ["memory://photos/a-b.png", "memory://photos/a/z.png"]
    (one,) = listed("memory://photos/b.png", passed)[1]
    assert one.path == "memory://photos/b.png" and one.state().startswith("5 ")
