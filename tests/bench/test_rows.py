"""Every row fits the model of its kind, when it is written and when it is read; what does not is a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.rows import COMPARE, KINDS, LATENCY, SCORE, append, lacking, read, unclean, write
from zoo.base.errors import ArtefactError
from zoo.base.files import PROJECT

RESULTS = PROJECT / "bench" / "results"
KEPT = [path.name for path in sorted(RESULTS.glob("*.jsonl"))]


@pytest.fixture
def row(chain: Path) -> dict[str, object]:
    return read(chain / "bench" / LATENCY)[0]


def test_kept_rows_are_read_as_they_are(tmp_path: Path) -> None:
    assert len(KEPT) >= 8
    for name in KEPT:
        raw = [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]
        assert read(RESULTS / name) == [
            {("load_average" if (name, key) == (COMPARE, "load") else key): value for key, value in entry.items()}
            for entry in raw
        ]
        write(tmp_path / name, read(RESULTS / name))
        assert read(tmp_path / name) == read(RESULTS / name)


def test_what_came_later_may_be_missing_where_rows_are_read_alone(tmp_path: Path, row: dict[str, object]) -> None:
    old = {name: value for name, value in row.items() if name != "hint"}
    write(tmp_path / LATENCY, [row, old])
    assert read(tmp_path / LATENCY) == [row, old]
    assert lacking(tmp_path / LATENCY) == {"hint": 1}
    with pytest.raises(ArtefactError, match=r"latency.jsonl: new row 1: expected hint, got nothing; nothing was"):
        append(tmp_path / LATENCY, [old])
    assert len(read(tmp_path / LATENCY)) == 2


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"p50_ms": "fast"}, 'p50_ms: expected a valid number, got "fast"'),
        ({"n": 2.5}, "n: expected a valid integer, got 2.5"),
        ({"round_ms": []}, r"round_ms: .*at least 1 item.*, got \[\]"),
        ({"digest": "d"}, 'digest: .*, got "d"'),
        ({"p5_ms": 1}, "p5_ms: expected no such field"),
        ({"environment": {}}, r"environment.cpu: expected a value, got nothing \(and 6 more\)"),
    ],
)
def test_a_row_that_does_not_fit_is_a_sentence(
    tmp_path: Path, row: dict[str, object], changes: dict[str, object], sentence: str
) -> None:
    for act in (append, write):
        with pytest.raises(ArtefactError, match=rf"latency.jsonl: new row 1: {sentence}; nothing was written"):
            act(tmp_path / LATENCY, [row | changes])
    (tmp_path / LATENCY).write_text(f"{json.dumps(row)}\n{json.dumps(row | changes)}\n")
    remedy = "delete the line, or the file to measure again with `pocketzoo bench latency`"
    with pytest.raises(ArtefactError, match=rf"latency.jsonl:2: {sentence}; {remedy}"):
        read(tmp_path / LATENCY)


def test_a_line_that_is_no_json(tmp_path: Path) -> None:
    (tmp_path / SCORE).write_text("nonsense\n")
    with pytest.raises(ArtefactError, match=r"score.jsonl:1: the row: expected JSON: .*, got \"nonsense\"; delete"):
        read(tmp_path / SCORE)
    assert read(tmp_path / LATENCY) == []


def test_append_keeps_older_rows(tmp_path: Path, row: dict[str, object]) -> None:
    append(tmp_path / LATENCY, [row])
    append(tmp_path / LATENCY, [row | {"n": 2}])
    assert [entry["n"] for entry in read(tmp_path / LATENCY)] == [row["n"], 2]


@pytest.mark.parametrize(("commit", "clean"), [("0123456789ab", True), ("0123456789ab-dirty", False), (None, False)])
def test_commits(commit: str | None, clean: bool) -> None:
    problem = unclean({"environment": {"commit": commit}})
    assert (problem is None) == clean
    assert clean or repr(commit) in str(problem)


def test_every_kind_says_how_it_is_measured() -> None:
    assert {Path(name).suffix for name in KINDS} == {".jsonl"}
    assert all(kind.command.split()[0] in ("pocketzoo", "python", "pytest") for kind in KINDS.values())
