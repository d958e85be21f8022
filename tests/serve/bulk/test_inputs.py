"""What a source means, and how it is cut into partitions."""

from __future__ import annotations

import functools
import io
import itertools
import os
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serve.bulk.inputs
from serve.bulk.inputs import Partition, Source
from zoo.base.errors import DataError, UsageError


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def _parquet(path: Path, columns: dict[str, list[object]], **options: int) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def _partitions(text: Path | str, *, size: int = 100, **options: str) -> list[Partition]:
    return list(Source(text=str(text), size=size, **options).partitions())


def _count(text: Path | str) -> tuple[int, str, dict[str, int]]:
    passed: Counter[str] = Counter()
    *_, (count, unit) = Source(text=str(text), size=7).count(passed)
    return count, unit, dict(passed)


def test_a_folder_means_its_images_and_counts_the_rest(tmp_path):
    _touch(
        tmp_path, "b.png", "a/z.JPG", "a/1.parquet", "a/2.tar", "a/.hidden.png", "notes.txt", "more.txt", "x", "y.svg"
    )
    (partition,) = _partitions(tmp_path)
    assert [Path(file).relative_to(tmp_path).as_posix() for file in partition.files] == ["a/z.JPG", "b.png"]
    assert (partition.number, partition.first, len(partition)) == (0, 0, 2)
    count, unit, passed = _count(tmp_path)
    assert (count, unit) == (2, "images")
    svg = passed.pop("ending in .svg (save them as JPEG, PNG or WebP)")
    others = {"ending in .txt": 2, "ending in .parquet": 1, "ending in .tar": 1, "without a suffix": 1, "hidden": 1}
    assert (svg, passed) == (1, others)


def test_endless_suffixes_share_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(serve.bulk.inputs, "_REASONS", 2)
    _touch(tmp_path, "a.png", *(f"b.{number}" for number in range(5)))
    assert _count(tmp_path)[2] == {"ending in .0": 1, "ending in .1": 1, "of other kinds": 3}


def test_partitions_run_through_folders(tmp_path):
    _touch(tmp_path, *(f"{folder}/{number}.png" for folder in "abc" for number in range(3)))
    found = _partitions(tmp_path, size=4)
    assert [(one.number, one.first, len(one)) for one in found] == [(0, 0, 4), (1, 4, 4), (2, 8, 1)]
    assert [Path(one.files[0]).relative_to(tmp_path).as_posix() for one in found] == ["a/0.png", "b/1.png", "c/2.png"]


def test_a_digest_is_of_names_sizes_and_times(tmp_path):
    _touch(tmp_path, "1.png", "2.png", "3.png")

    def digests() -> list[str]:
        return [one.digest for one in _partitions(tmp_path, size=2)]

    first = digests()
    assert digests() == first
    os.utime(tmp_path / "3.png", ns=(1, 1))
    second = digests()
    assert second[0] == first[0] and second[1] != first[1]
    (tmp_path / "1.png").rename(tmp_path / "0.png")
    assert digests()[0] != first[0]


def test_a_glob_means_whatever_it_matches(tmp_path):
    _touch(tmp_path, "1.png", "2.dat")
    assert [Path(file).name for file in _partitions(f"{tmp_path}/*")[0].files] == ["1.png", "2.dat"]
    _parquet(tmp_path / "rows", {"image": [b"1"]})
    assert _partitions(tmp_path / "rows")[0].rows.column == "image"


def test_a_folder_without_images_means_its_parquet_files_or_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(serve.bulk.inputs, "_HELD", 2)
    for name in ("b", "a"):
        _parquet(tmp_path / f"{name}.parquet", {"bytes": [b"1", b"2", b"3"]}, row_group_size=2)
    found = _partitions(tmp_path, size=2)
    assert [(one.number, one.first, one.rows.begin, one.rows.count) for one in found] == [
        (0, 0, 0, 2),
        (1, 2, 2, 1),
        (2, 3, 0, 2),
        (3, 5, 2, 1),
    ]
    assert len({one.digest for one in found}) == 4
    assert _count(tmp_path) == (6, "images", {})
    # An image after that many Parquet files is counted, and scored where it comes before.
    _touch(tmp_path, "c.png", "d.tar")
    assert _count(tmp_path) == (6, "images", {"ending in .png": 1, "ending in .tar": 1})
    _touch(tmp_path, "aa.png")
    assert _count(tmp_path) == (2, "images", {"ending in .parquet": 2, "ending in .tar": 1})


def test_a_shard_is_a_partition(tmp_path):
    for name in ("1.tar", "0.tar.gz"):
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as shard:
            shard.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    found = _partitions(tmp_path)
    assert [(one.number, Path(one.tar).name, len(one)) for one in found] == [(0, "0.tar.gz", 1), (1, "1.tar", 1)]
    assert _count(tmp_path) == (2, "shards", {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "no images below it; expected files ending in"),
        ("*.jpg", "the glob matches no file"),
        ("none.parquet", r"0 columns of images, .* columns: a \(int64\), b \(string\)"),
        ("two.parquet", "2 columns of images, .* name one with --column"),
        ("rowless.parquet", "no rows to score"),
        ("text.parquet", "not a Parquet file that can be read"),
    ],
)
def test_nothing_to_score_is_a_sentence(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    _parquet(tmp_path / "none.parquet", {"a": [1], "b": ["x"]})
    _touch(tmp_path, "text.parquet")
    _parquet(tmp_path / "two.parquet", {"front": [b"x"], "back": [b"x"]})
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "rowless.parquet")
    with pytest.raises(DataError, match=message):
        _partitions(tmp_path / name)


def test_columns_that_are_not_there(tmp_path):
    text = _parquet(tmp_path / "x.parquet", {"id": [7, 8], "pixels": [b"1", b"2"], "count": [1, 2]})
    assert _partitions(text, key="id")[0].rows.column == "pixels"
    with pytest.raises(UsageError, match=r"unknown column of .*'pixel'; did you mean pixels"):
        _partitions(text, column="pixel")
    with pytest.raises(UsageError, match=r"unknown column of .*'ids'; did you mean id"):
        _partitions(text, key="ids")
    with pytest.raises(DataError, match="column 'count' holds int64; expected images"):
        _partitions(text, column="count")
    _touch(tmp_path, "1.png")
    with pytest.raises(UsageError, match="--column and --key belong to Parquet files"):
        _partitions(tmp_path / "1.png", key="id")


class _Entry:
    """Of a folder that is simulated."""

    def __init__(self, number: int) -> None:
        self.name = f"{number * 7919 % 1_000_003:08d}.jpg"

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return False

    def stat(self) -> os.stat_result:
        return os.stat_result((0,) * 10)


def test_memory_does_not_grow_with_the_names(tmp_path, monkeypatch):
    taken = 0

    class Scan(Iterator[_Entry]):
        def __init__(self, path: str) -> None:
            self._numbers = iter(range(200_000))

        def __enter__(self) -> Iterator[_Entry]:
            return self

        def __exit__(self, *given: object) -> None: ...

        def __next__(self) -> _Entry:
            nonlocal taken
            taken += 1
            return _Entry(next(self._numbers))

    monkeypatch.setattr(os, "scandir", Scan)
    monkeypatch.setattr("serve.bulk.listing._WINDOW", 5_000)
    partitions = Source(text=str(tmp_path), size=1_000).partitions()
    tracemalloc.start()
    try:
        first = next(partitions)
        assert len(first) == 1_000 and taken <= 5_001
        for _ in itertools.islice(partitions, 9):
            pass
        early = tracemalloc.get_traced_memory()[1]
        last = functools.reduce(lambda _, partition: partition, partitions)
        late = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (last.number, last.first, taken) == (199, 199_000, 200_001)
    assert late < 1.2 * early < 10 << 20
