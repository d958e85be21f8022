"""What a folder, a glob and a Parquet file name, and how it is cut into chunks."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.bulk.inputs import Source, open_source
from serve.bulk.scorer import shown
from zoo.base.errors import DataError, UsageError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def _names(source: Source, start: int = 0) -> list[str]:
    return [name for chunk in source.read(start) for name in chunk.names]


def _parquet(path: Path, columns: dict[str, list[object]], **options: int) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    _touch(tmp_path, "b.png", "closed/a.png")
    scandir = os.scandir

    def refuse(path):
        # The user who runs the tests may be allowed everything.
        if os.fsencode(path).endswith(b"closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"/closed: the folder cannot be read \(Permission denied\)"):
        open_source(str(tmp_path), batch=2)


def test_a_folder_means_its_pictures_at_any_depth_by_path(tmp_path):
    _touch(tmp_path, "b.png", "a/z.JPG", "a/.hidden.png", ".git/c.png", "notes.txt", "r.parquet")
    source = open_source(str(tmp_path), batch=2)
    assert [Path(name).relative_to(tmp_path).as_posix() for name in _names(source)] == ["a/z.JPG", "b.png"]
    assert (source.rows, source.chunks) == (2, 1)


def test_a_glob_means_every_file_it_matches(tmp_path):
    _touch(tmp_path, "1.png", "2.dat", "deep/3.png", "deep/er/4.png")
    assert [Path(name).name for name in _names(open_source(f"{tmp_path}/*.*", batch=1))] == ["1.png", "2.dat"]
    deep = open_source(f"{tmp_path}/**/*.png", batch=1)
    assert [Path(name).name for name in _names(deep)] == ["1.png", "3.png", "4.png"]
    assert _names(open_source(f"{tmp_path}/1.png", batch=1)) == [f"{tmp_path}/1.png"]


def test_the_result_is_no_part_of_its_source(tmp_path):
    _touch(tmp_path, "a.png")
    for name in ("a.parquet", "out.parquet"):
        _parquet(tmp_path / name, {"image": [b"x"]})
    pattern = str(tmp_path / "*.parquet")
    assert len(_names(open_source(pattern, batch=1))) == 2
    assert len(_names(open_source(pattern, batch=1, out=tmp_path / "out.parquet"))) == 1
    with pytest.raises(DataError, match="is where the result would go, in place of the images"):
        open_source(str(tmp_path / "a.parquet"), batch=1, out=tmp_path / "a.parquet")


def test_a_link_upwards_scores_nothing_twice(tmp_path):
    _touch(tmp_path, "a.png", "b/c.png")
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "d.png").symlink_to(tmp_path / "a.png")
    names = _names(open_source(str(tmp_path / "**" / "*.png"), batch=1))
    assert [Path(name).relative_to(tmp_path).as_posix() for name in names] == ["a.png", "b/c.png", "d.png"]


def test_a_name_with_brackets_is_a_name_if_it_exists(tmp_path):
    _touch(tmp_path, "set[1]/1.png", "set1/2.png")
    assert [Path(name).name for name in _names(open_source(f"{tmp_path}/set[1]", batch=1))] == ["1.png"]


def test_names_that_are_not_unicode_are_escaped(tmp_path):
    place = os.fsencode(tmp_path) + b"/\xff.png"
    Path(os.fsdecode(place)).write_bytes(b"x")
    (chunk,) = open_source(str(tmp_path), batch=1).read(0)
    assert chunk.files == (place,)
    assert chunk.names[0].endswith("\\xff.png") and shown(place) == chunk.names[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no images below it; expected files ending in"),
        ("missing", "nothing is there; name a folder, a glob in quotes"),
        ("*.png", "the glob matches no file"),
        ("none.parquet", r"0 columns of images, .* columns: a \(int64\), b \(string\)"),
        ("two.parquet", "2 columns of images, .* name one with --column"),
        ("rowless.parquet", "no rows to score"),
        ("text.parquet", "not a Parquet file that can be read"),
        ("mixed/*", "1 Parquet files and 1 others"),
    ],
)
def test_nothing_to_score_is_a_sentence(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    _parquet(tmp_path / "none.parquet", {"a": [1], "b": ["x"]})
    _parquet(tmp_path / "mixed" / "r.parquet", {"path": ["x"]})
    _touch(tmp_path, "text.parquet", "mixed/1.png")
    _parquet(tmp_path / "two.parquet", {"front": [b"x"], "back": [b"x"]})
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "rowless.parquet")
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / name), batch=1)


def test_columns_of_parquet(tmp_path):
    text = _parquet(tmp_path / "x.parquet", {"id": [7, 8], "pixels": [b"1", b"2"], "count": [1, 2]})
    (chunk,) = open_source(text, batch=2).read(0)
    assert (chunk.images, chunk.names) == ((b"1", b"2"), ("x.parquet#0", "x.parquet#1"))
    assert _names(open_source(text, batch=2, key="id")) == ["7", "8"]
    with pytest.raises(UsageError, match=r"unknown column of .*'pixel'; did you mean pixels"):
        open_source(text, batch=2, column="pixel")
    with pytest.raises(UsageError, match=r"unknown column of .*'ids'; did you mean id"):
        open_source(text, batch=2, key="ids")
    with pytest.raises(DataError, match="column 'count' holds int64; expected images"):
        open_source(text, batch=2, column="count")
    _touch(tmp_path, "1.png")
    with pytest.raises(UsageError, match="--column and --key belong to Parquet files"):
        open_source(str(tmp_path / "1.png"), batch=1, key="id")


def test_structs_as_hugging_face_writes_them(tmp_path):
    rows = [{"bytes": b"1", "path": "a.png"}, {"bytes": b"2", "path": None}, {"bytes": None, "path": "c.png"}, None]
    (chunk,) = open_source(_parquet(tmp_path / "x.parquet", {"image": rows}), batch=4).read(0)
    assert chunk.images == (b"1", b"2", None, None)
    assert chunk.files == (None, None, b"c.png", None)
    assert chunk.names == ("a.png", "x.parquet#1", "c.png", "x.parquet#3")
    assert chunk.base == os.fsencode(tmp_path)


def test_a_folder_of_parquet_files_is_one_source(tmp_path):
    for name in ("b", "a"):
        _parquet(tmp_path / f"{name}.parquet", {"bytes": [b"1", b"2", b"3"]}, row_group_size=2)
    chunks = list(open_source(str(tmp_path), batch=2).read(0))
    assert [chunk.first for chunk in chunks] == [0, 2, 3, 5]
    assert [chunk.number for chunk in chunks] == [0, 1, 2, 3]
    assert chunks[-1].names == ("b.parquet#2",)


def test_large_pictures_make_smaller_chunks(tmp_path):
    text = _parquet(tmp_path / "x.parquet", {"image": [os.urandom(1 << 20) for _ in range(20)]})
    assert [len(chunk.names) for chunk in open_source(text, batch=2).read(0)] == [6, 6, 6, 2]


def test_the_digest_is_of_names_sizes_and_times(tmp_path):
    _touch(tmp_path, "1.png", "2.png")

    def digest() -> str:
        return open_source(str(tmp_path), batch=1).digest

    first = digest()
    assert digest() == first
    os.utime(tmp_path / "1.png", ns=(1, 1))
    second = digest()
    _touch(tmp_path, "3.png")
    assert len({first, second, digest()}) == 3


@given(groups=st.lists(st.integers(1, 300), min_size=1, max_size=4), batch=st.integers(1, 200), data=st.data())
def test_reading_may_begin_with_any_chunk(tmp_path_factory, groups, batch, data):
    path = tmp_path_factory.mktemp("source") / "x.parquet"
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())])) as writer:
        for count in groups:
            writer.write_table(pa.table({"image": [b"x"] * count}))
    source = open_source(str(path), batch=batch)
    start = data.draw(st.integers(0, source.chunks))
    chunks = list(source.read(start))
    assert [chunk.number for chunk in chunks] == list(range(start, source.chunks))
    assert _names(source, start) == _names(source)[source.rows_before(start) :]
    assert source.rows == sum(groups) == source.rows_before(source.chunks)
    assert [chunk.first for chunk in chunks] == [source.rows_before(chunk.number) for chunk in chunks]
