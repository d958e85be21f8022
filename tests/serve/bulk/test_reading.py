"""Partitions of every kind as chunks."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import serve.bulk.reading
from serve.bulk.inputs import Source
from serve.bulk.reading import read
from serve.bulk.scorer import Chunk
from zoo.base.errors import DataError


def _chunks(text: Path | str, *, size: int = 1000, batch: int = 2, most: int = 1000, **options: str) -> list[Chunk]:
    source = Source(text=str(text), size=size, **options)
    return [chunk for partition in source.partitions() for chunk in read(partition, batch=batch, most=most)]


def _parquet(path: Path, values: list[object], **options: int) -> Path:
    pq.write_table(pa.table({"image": values}), path, **options)
    return path


def test_files(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    assert [(chunk.first, len(chunk.items)) for chunk in _chunks(tmp_path, size=3)] == [(0, 3), (3, 2)]
    assert _chunks(tmp_path)[0].items[4][:3] == (f"{tmp_path}/4.png", None, f"{tmp_path}/4.png")


def test_columns_of_parquet(tmp_path):
    pq.write_table(pa.table({"id": [7, 8], "pixels": [b"1", b"2"]}), tmp_path / "x.parquet")
    (chunk,) = _chunks(tmp_path / "x.parquet")
    assert [item[:2] for item in chunk.items] == [("x.parquet#0", b"1"), ("x.parquet#1", b"2")]
    assert [item.name for item in _chunks(tmp_path / "x.parquet", key="id")[0].items] == ["7", "8"]


def test_structs_as_hugging_face_writes_them(tmp_path):
    rows = [{"bytes": b"1", "path": "a.png"}, {"bytes": b"2", "path": None}, {"bytes": None, "path": "c.png"}, None]
    (chunk,) = _chunks(_parquet(tmp_path / "x.parquet", rows), batch=4)
    assert [item.image for item in chunk.items] == [b"1", b"2", None, None]
    assert [item.file for item in chunk.items] == [None, None, "c.png", None]
    assert [item.name for item in chunk.items] == ["a.png", "x.parquet#1", "c.png", "x.parquet#3"]
    assert chunk.base == str(tmp_path)


def test_large_pictures_make_smaller_chunks(tmp_path):
    path = _parquet(tmp_path / "x.parquet", [os.urandom(1 << 20) for _ in range(20)])
    assert [len(chunk.items) for chunk in _chunks(path)] == [8, 8, 4]
    assert [len(chunk.items) for chunk in _chunks(path, batch=5)] == [10, 10]


@given(
    groups=st.lists(st.integers(1, 300), min_size=1, max_size=4),
    size=st.integers(1, 400),
    data=st.data(),
)
def test_rows_are_read_from_any_partition_on(tmp_path_factory, groups, size, data):
    path = tmp_path_factory.mktemp("source") / "x.parquet"
    number = 0
    with pq.ParquetWriter(path, pa.schema([("image", pa.binary())])) as writer:
        for count in groups:
            writer.write_table(pa.table({"image": [str(number + place).encode() for place in range(count)]}))
            number += count
    partitions = list(Source(text=str(path), size=size).partitions())
    start = data.draw(st.integers(0, len(partitions) - 1))
    chunks = [chunk for partition in partitions[start:] for chunk in read(partition, batch=2, most=1)]
    assert [int(item.image) for chunk in chunks for item in chunk.items] == list(range(start * size, number))
    assert all(int(chunk.items[0].image) == chunk.first for chunk in chunks)


def test_the_next_partition_goes_on_where_the_one_before_ended(tmp_path, monkeypatch):
    path, opened = _parquet(tmp_path / "x.parquet", [b"1"] * 30), []
    rows_from = serve.bulk.reading._rows_from
    monkeypatch.setattr(serve.bulk.reading, "_rows_from", lambda rows: opened.append(rows.begin) or rows_from(rows))
    assert len(_chunks(path, size=7)) == 5
    assert opened == [0] and not serve.bulk.reading._rows_left


def test_a_parquet_file_that_breaks(tmp_path):
    path = _parquet(tmp_path / "x.parquet", [os.urandom(100) for _ in range(1000)])
    partitions = list(Source(text=str(path), size=1000).partitions())
    content = bytearray(path.read_bytes())
    content[4:20_000] = bytes(len(content[4:20_000]))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"(?s)cannot be read from row 0 on: .*; write it again"):
        list(read(partitions[0], batch=2, most=1))


def _shard(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as shard:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_shards(tmp_path, suffix):
    members = {f"{number:03d}.{kind}": kind.encode() for number in range(150) for kind in ("jpg", "cls", "json")}
    path = _shard(tmp_path / f"s.tar{suffix}", members | {"a/.b.png": b"", "big.png": bytes(2000)}, f"w:{suffix[1:]}")
    (partition,) = Source(text=str(path), size=10).partitions()
    chunks = list(read(partition, batch=16, most=1000))
    assert [(chunk.first, len(chunk.items)) for chunk in chunks] == [(0, 128), (128, 23)]
    assert chunks[0].items[1][:2] == (f"{path}#001.jpg", b"jpg")
    # A byte more than is accepted is enough to refuse it.
    assert len(chunks[1].items[-1].image) == 1001
    assert partition.passed == {"ending in .cls": 150, "ending in .json": 150, "hidden": 1}


def test_a_shard_without_images_has_an_empty_chunk(tmp_path):
    (chunk,) = _chunks(_shard(tmp_path / "s.tar", {"a.txt": b"x"}))
    assert chunk.items == ()


@pytest.mark.parametrize(
    ("damage", "good", "said"),
    [
        (lambda content: content[:1300], 1, "header|cut off"),
        (lambda content: content[:1100], 1, "header"),
        (lambda content: content[:1024], 1, "header"),
        (lambda content: content[:1024] + b"x" * 512 + content[1536:], 1, "checksum|header"),
        (lambda content: b"nonsense" * 100, 0, "file could not be opened|header"),
    ],
)
def test_a_damaged_shard_is_a_row_behind_its_good_ones(tmp_path, damage, good, said):
    path = _shard(tmp_path / "s.tar", {"a.png": b"1", "b.png": bytes(600)})
    path.write_bytes(damage(path.read_bytes()))
    (chunk,) = _chunks(path)
    assert [item.error is None for item in chunk.items] == [True] * good + [False]
    assert chunk.items[-1].name == str(path)
    assert chunk.items[-1].error.startswith("the shard is damaged from here on: ")
    assert re.search(said, chunk.items[-1].error)
