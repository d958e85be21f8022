"""Parts on disk, and the result made from them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serve.bulk.partial_results
from serve.bulk.partial_results import Totals, check_out, count, opened_parts, read_metadata
from serve.bulk.scorer import SCHEMA
from zoo.base.errors import ArtefactError, UsageError

MANIFEST = {"source": "photos", "settings": {"top": 5}}


def _rows(first: int, end: int) -> pa.RecordBatch:
    rows = [
        {"row": row, "path": f"{row}.png"} | ({"error": "is broken"} if row % 7 == 0 else {"label": "cat"})
        for row in range(first, end)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


@settings(max_examples=25)
@given(
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    cuts=st.lists(st.integers(1, 5), max_size=12),
    group=st.integers(1, 40),
)
def test_any_number_of_parts_and_interruptions_makes_the_same_file(tmp_path_factory, chunks, cuts, group):
    folder = tmp_path_factory.mktemp("parts")
    batches, first = [], 0
    for size in chunks:
        batches.append(_rows(first, first + size))
        first += size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve.bulk.partial_results, "_GROUP", group)
        with opened_parts(folder / "whole.parquet", MANIFEST, force=False) as parts:
            parts.write(batches)
            parts.assemble({"name": "x"})
        for cut in cuts:
            with opened_parts(folder / "cut.parquet", MANIFEST, force=False) as parts:
                if taken := batches[parts.done : parts.done + cut]:
                    parts.write(taken)
        with opened_parts(folder / "cut.parquet", MANIFEST, force=False) as parts:
            assert parts.done == min(len(batches), sum(cuts))
            if parts.done < len(batches):
                parts.write(batches[parts.done :])
            parts.assemble({"name": "x"})
    assert (folder / "cut.parquet").read_bytes() == (folder / "whole.parquet").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["cut.parquet", "whole.parquet"]
    assert pq.read_table(folder / "cut.parquet")["row"].to_pylist() == list(range(first))
    assert read_metadata(folder / "cut.parquet") == {"name": "x"}


def test_what_is_missing_or_broken_is_made_again(tmp_path):
    out = tmp_path / "r.parquet"
    with opened_parts(out, MANIFEST, force=False) as parts:
        for first in (0, 4, 8):
            parts.write([_rows(first, first + 4)])
    names = sorted(path.name for path in parts.folder.glob("part-*"))
    (parts.folder / names[1]).write_bytes(b"half")
    with opened_parts(out, MANIFEST, force=False) as parts:
        assert parts.done == 1
        assert [path.name for path in parts.folder.glob("part-*")] == names[:1]


def test_parts_of_another_run_need_force(tmp_path):
    out = tmp_path / "r.parquet"
    with opened_parts(out, MANIFEST, force=False) as parts:
        parts.write([_rows(0, 4)])
    with (
        pytest.raises(UsageError, match="source was 'photos', is 'other'; --force begins again"),
        opened_parts(out, MANIFEST | {"source": "other"}, force=False),
    ):
        pytest.fail("opened")
    with opened_parts(out, MANIFEST | {"source": "other"}, force=True) as parts:
        assert parts.done == 0
    assert not parts.folder.exists()


def test_two_processes_do_not_write_one_result(tmp_path):
    out = tmp_path / "r.parquet"
    with (
        opened_parts(out, MANIFEST, force=False),
        pytest.raises(UsageError, match="another process is writing it"),
        opened_parts(out, MANIFEST, force=False),
    ):
        pytest.fail("opened")


def test_a_part_that_disappears_is_a_sentence(tmp_path):
    with opened_parts(tmp_path / "r.parquet", MANIFEST, force=False) as parts:
        parts.write([_rows(0, 4)])
        next(parts.folder.glob("part-*")).unlink()
        with pytest.raises(ArtefactError, match="cannot be read"):
            parts.assemble({})
    assert not (tmp_path / "r.parquet").exists()


def test_counting(tmp_path):
    with opened_parts(tmp_path / "r.parquet", MANIFEST, force=False) as parts:
        parts.write([_rows(0, 30)])
        parts.assemble({})
    examples = ("0.png: is broken", "7.png: is broken", "14.png: is broken")
    assert count(tmp_path / "r.parquet") == Totals(images=30, errors=5, examples=examples)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("r.csv", "expected a name that ends in .parquet, got '.csv'"),
        ("folder.parquet", "expected a file, that is a folder"),
        ("gone/r.parquet", "there is no folder .*gone; make it"),
    ],
)
def test_a_result_that_could_not_be_written(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UsageError, match=message):
        check_out(tmp_path / name)


def test_metadata_of_something_else(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"x")
    assert [read_metadata(tmp_path / name) for name in ("a.parquet", "b.parquet", "c.parquet")] == [None] * 3
