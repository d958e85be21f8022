"""Tests of compress.search.journal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.search.journal import FLOAT, INT8, PARENT, Journal, Record, Task, candidates, parent_of, record_of
from tests.compress.simulated import World
from zoo.base.errors import ArtefactError

TASKS = (
    PARENT,
    Task(kind="rank", ratio=0.5, importance="l2"),
    Task(kind="measure", ratio=0.5, importance="l2", epochs=3),
    Task(kind="retime", names=("l2-0.50-e3 int8",)),
)


def filled(path: Path, search: str = "a") -> Journal:
    journal = Journal(path, search)
    for task in TASKS:
        journal.begin(task)
        journal.add(World().run(task))
    return journal


def test_a_journal_comes_back_as_it_was(tmp_path: Path) -> None:
    journal = filled(tmp_path / "c.jsonl")
    journal.note("chosen", {"name": "x"})
    journal.lose(2.5)
    again = Journal(tmp_path / "c.jsonl", "a")
    assert again.records == journal.records == [World().run(task) for task in TASKS]
    assert again.facts == {"chosen": {"name": "x"}}
    assert again.seconds == journal.seconds == sum(record.seconds for record in journal.records) + 2.5
    assert again.open is None


def test_half_a_line_at_the_end_is_dropped_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    filled(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"search": "a", "kind": "rec')
    journal = Journal(path, "a")
    assert len(journal.records) == len(TASKS)
    journal.note("x", 1)
    assert path.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert Journal(path, "a").facts == {"x": 1}


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_a_file_cut_anywhere_can_be_read(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("journal") / "c.jsonl"
    records = filled(path).records
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)])
    found = Journal(path, "a").records
    assert found == records[: len(found)]


def test_lines_of_other_searches_stay_and_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    filled(path, "a")
    other = Journal(path, "b")
    assert (other.records, other.seconds) == ([], 0)
    other.begin(PARENT)
    assert Journal(path, "b").open is not None
    assert len(Journal(path, "a").records) == len(TASKS)


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", '{"search": "a", "kind": "new", "content": 1}'])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "c.jsonl"
    filled(path)
    path.write_text(f"{line}\n" + path.read_text())
    with pytest.raises(ArtefactError, match=r"c\.jsonl:1: not a line of a search"):
        Journal(path, "a")


def test_a_begun_task_is_open_until_it_is_done_or_lost(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    journal = Journal(path, "a")
    journal.begin(TASKS[1])
    task, begun = Journal(path, "a").open or (None, 0.0)
    assert task == TASKS[1]
    assert begun > 1e9
    journal.lose(1.0)
    assert Journal(path, "a").open is None


def record(share: float, *, epochs: int = 3, parent_ms: float = 10.0, importance: str = "l2") -> Record:
    task = Task(kind="measure", ratio=0.5, importance=importance, epochs=epochs)
    made = World().run(task)
    files = tuple(dataclasses.replace(file, shares=(share, share, share)) for file in made.files)
    return dataclasses.replace(made, files=files, parent_ms=parent_ms)


def test_milliseconds_are_shares_of_one_yardstick() -> None:
    first = dataclasses.replace(World().run(PARENT), parent_ms=10.0)
    found = candidates([first, record(0.5, parent_ms=30.0), record(0.4, epochs=1, parent_ms=11.0)])
    assert {entry.parent_ms for entry in found} == {11.0}
    assert parent_of(found).ms == 11.0


def test_candidates_of_the_same_widths_share_their_times() -> None:
    parent = World().run(PARENT)
    found = candidates([parent, record(0.5), record(0.4, importance="fpgm")])
    pruned = [entry for entry in found if entry.task.importance and entry.precision == INT8]
    assert len(pruned) == 2
    assert {entry.share for entry in pruned} == {0.45}
    assert all(len(entry.shares) == 6 for entry in pruned)


def test_times_taken_again_join_the_first_ones() -> None:
    parent, child = World().run(PARENT), record(0.5)
    name = f"{child.task.name} {FLOAT}"
    again = Record(task=Task(kind="retime", names=(name,)), seconds=1, parent_ms=10.0, shares={name: (0.3,) * 5})
    entry = next(entry for entry in candidates([parent, child, again]) if entry.name == name)
    assert entry.share == 0.3
    assert len(entry.shares) == 8


def test_the_newest_record_of_a_task_counts() -> None:
    parent = World().run(PARENT)
    old, new = record(0.5), record(0.2)
    assert record_of([parent, old, new], old.task) == new
    assert {entry.share for entry in candidates([parent, old, new]) if entry.task.importance} == {0.2}
    assert candidates([]) == []


def test_names_of_folders() -> None:
    assert [task.name for task in TASKS] == ["parent", "l2-0.50", "l2-0.50-e3", "retime"]
