"""A result's files: whole, found again, refused where they do not agree."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import serve.bulk.parts
from serve.bulk.inputs import Partition
from serve.bulk.parts import METADATA, Parts, Summary
from serve.bulk.scorer import SCHEMA
from zoo.base.errors import UsageError


def _rows(first: int, end: int) -> pa.RecordBatch:
    rows = [
        {"row": row, "path": f"{row}.png"} | ({"error": "is broken"} if row % 7 == 0 else {"label": "cat"})
        for row in range(first, end)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _partition(number: int = 0, **changes: object) -> Partition:
    return Partition(**{"number": number, "first": 0, "digest": "d", "files": ("x",)} | changes)


def _decides(artefact: str = "a", top: int = 5) -> dict[str, object]:
    return {"artefact_digest": artefact, "settings": {"top": top, "batch": 2}}


def _parts(out: Path) -> Parts:
    return Parts(out=str(out), decides=_decides(), about={"name": "n"})


def test_a_part_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setattr(serve.bulk.parts, "_GROUP", 20)
    parts, partition = _parts(tmp_path / "r"), _partition(3, passed=Counter({"hidden": 2}))
    with parts.opened(force=False):
        assert parts.find(partition) is None
        written = parts.write(partition, [_rows(0, 9), _rows(9, 30), _rows(30, 37)])
        found = parts.find(_partition(3))
    examples = ("0.png: is broken", "7.png: is broken", "14.png: is broken")
    assert written == Summary(rows=37, errors=6, examples=examples, passed={"hidden": 2}, fresh=True)
    assert found == replace(written, fresh=False)
    path = tmp_path / "r" / "part-00003.parquet"
    assert [name.name for name in path.parent.iterdir()] == [path.name]
    assert pq.read_table(path)["row"].to_pylist() == list(range(37))
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [30, 7]
    known = json.loads(metadata.metadata[METADATA])
    assert known["name"] == "n" and known["artefact_digest"] == "a" and known["inputs_digest"] == "d"


def test_a_part_without_rows(tmp_path):
    parts = _parts(tmp_path / "r")
    with parts.opened(force=False):
        assert parts.write(_partition(), [_rows(0, 0)]).rows == 0
    assert pq.read_schema(tmp_path / "r" / "part-00000.parquet").equals(SCHEMA)


def test_a_failure_leaves_nothing(tmp_path):
    parts = _parts(tmp_path / "r")

    def rows():
        yield _rows(0, 4)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), parts.opened(force=False):
        parts.write(_partition(), rows())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("decides", "digest", "message"),
    [
        (_decides("b"), "d", "expected artefact digest b, found a; --force"),
        (_decides(top=1), "d", r"expected settings \{'top': 1\}, found \{'top': 5\}; --force scores everything again"),
        (_decides(), "e", r"part-00000\.parquet: expected inputs digest e, found d; --force"),
    ],
)
def test_a_part_that_does_not_agree_is_refused(tmp_path, decides, digest, message):
    parts = _parts(tmp_path / "r")
    with parts.opened(force=False):
        parts.write(_partition(), [_rows(0, 4)])
    other = replace(parts, decides=decides)
    with pytest.raises(UsageError, match=message):
        other.find(_partition(digest=digest))
    with other.opened(force=True):
        assert other.find(_partition(digest=digest)) is None


def test_what_is_no_part(tmp_path):
    parts = _parts(tmp_path / "r")
    (tmp_path / "r").mkdir()
    path = tmp_path / "r" / "part-00000.parquet"
    for write in (lambda: path.write_bytes(b"x"), lambda: pq.write_table(pa.table({"a": [1]}), path)):
        write()
        with pytest.raises(UsageError, match=r"part-00000\.parquet: no part of this command"):
            parts.find(_partition())


def test_a_source_that_became_shorter_is_told(tmp_path):
    parts = _parts(tmp_path / "r")
    with parts.opened(force=False):
        for number in range(3):
            parts.write(_partition(number), [_rows(0, 4)])
        with pytest.raises(UsageError, match=r"expected 1 parts, found 2 more from part-00001\.parquet on"):
            parts.finish(1, {})
        assert not (tmp_path / "r" / "_SUCCESS").exists()
        parts.finish(3, {"images": 12})
    said = json.loads((tmp_path / "r" / "_SUCCESS").read_text())
    assert (said["images"], said["name"], said["artefact_digest"]) == (12, "n", "a")
    assert pq.read_table(tmp_path / "r").num_rows == 12
    with parts.opened(force=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_write_one_result(tmp_path):
    parts = _parts(tmp_path / "r")
    with (
        parts.opened(force=False),
        pytest.raises(UsageError, match="another process is writing it"),
        parts.opened(force=False),
    ):
        pytest.fail("opened")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("photos", "found 1.png in it; name another one"),
        ("file.parquet", "expected a folder that can be written .*FileExistsError"),
        ("gone/r", "expected a folder that can be written .*FileNotFoundError"),
    ],
)
@pytest.mark.parametrize("force", [False, True])
def test_a_result_that_cannot_be_written(tmp_path, name, message, force):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_bytes(b"x")
    (tmp_path / "file.parquet").write_bytes(b"x")
    with pytest.raises(UsageError, match=message), _parts(tmp_path / name).opened(force=force):
        pytest.fail("opened")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.parquet", "photos"]
    assert (tmp_path / "photos" / "1.png").exists()
