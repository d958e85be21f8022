"""What a folder remembers, and what is up to date."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.zoo.factories import make_card
from zoo.artefact.card import LineageEntry
from zoo.base.errors import ArtefactError, DataError
from zoo.data.catalogue import open_dataset
from zoo.data.folders.reading import Reading
from zoo.data.splits import Thin
from zoo.training.workspace import (
    DataSource,
    Notes,
    card_if_readable,
    is_current,
    notes_for,
    read_notes,
    without_data,
    write_notes,
)

NOTES = Notes(role="control", data=DataSource(name="digits", per_split=20), test=DataSource(name="a folder/ä", seed=3))


def test_notes_round_trip(tmp_path):
    write_notes(tmp_path / "x", NOTES)
    assert read_notes(tmp_path / "x") == NOTES
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["run.json"]


def test_notes_of_before_there_were_readings_are_read(tmp_path):
    source = {"name": "digits", "seed": 3, "per_split": None, "thin": None, "labels": 1.0}
    (tmp_path / "run.json").write_text(json.dumps({"role": "model", "data": source, "test": source}))
    assert read_notes(tmp_path).data == DataSource(name="digits", seed=3)


def test_a_source_remembers_how_it_is_read(output, tmp_path):
    from tests.zoo.data.folders.test_folder import _fill

    root = _fill(tmp_path / "pets", {"cat": 8, "train/red": 8, "train/blue": 8})
    for layout, labels in (("classes", ("cat", "train")), ("splits", ("blue", "red"))):
        source = DataSource(name=str(root), reading=Reading(layout=layout))
        write_notes(tmp_path, dataclasses.replace(NOTES, data=source))
        assert read_notes(tmp_path).data == source
        assert read_notes(tmp_path).data.open().labels == labels


def test_missing_notes(tmp_path):
    with pytest.raises(
        ArtefactError, match=rf"^{tmp_path.name} has no run\.json, which says where its data is; add --data$"
    ):
        read_notes(tmp_path)


@pytest.mark.parametrize("content", [None, b"{", b"\xff", b"[]", b'{"role": "model"}'])
def test_broken_notes(tmp_path, content):
    path = tmp_path / "run.json"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=rf"run\.json: .*says where the data of {tmp_path.name} is; add") as found:
        read_notes(tmp_path)
    assert str(found.value).count(str(path)) == 1
    assert "Errno" not in str(found.value)


def test_a_source_opens_its_data(output):
    assert {len(samples) for samples in NOTES.data.open().splits.values()} == {20}


def test_a_source_remembers_what_was_left_out(output, tmp_path):
    source = DataSource(name="digits", seed=4, thin=Thin(classes=("1", "7"), keep=0.5), labels=0.1)
    write_notes(tmp_path, dataclasses.replace(NOTES, data=source))
    assert read_notes(tmp_path).data == source
    dataset = read_notes(tmp_path).data.open()
    assert (len(dataset.splits["train"]), len(dataset.unlabelled)) == (113, 1019)
    assert dataset.splits["test"] == DataSource(name="digits").open().splits["test"]


def test_a_source_remembers_that_validation_images_are_training_images(output, tmp_path):
    source = DataSource(name="digits", per_split=20, joined=True)
    write_notes(tmp_path, dataclasses.replace(NOTES, data=source))
    dataset = read_notes(tmp_path).data.open()
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 40, "test": 20}


def test_the_same_data_set_by_name_keeps_what_was_left_out(tmp_path):
    thin = Thin(classes=("1",), keep=0.5)
    source = DataSource(name="/old/place/pets", seed=4, per_split=7, thin=thin, labels=0.1, joined=True)
    notes = Notes(role="control", data=source, test=source)
    write_notes(tmp_path, notes)
    assert notes_for(tmp_path, None) == notes_for(tmp_path, DataSource(name=source.name)) == notes
    moved = dataclasses.replace(source, name="/new/pets")
    assert notes_for(tmp_path, DataSource(name="/new/pets")) == Notes(role="control", data=moved, test=moved)
    other = DataSource(name="/new/birds")
    assert notes_for(tmp_path, other) == Notes(role="model", data=other, test=other)
    assert notes_for(tmp_path / "none", other) == Notes(role="model", data=other, test=other)
    write_notes(tmp_path, NOTES)
    assert notes_for(tmp_path, DataSource(name="digits")) == NOTES
    with pytest.raises(ArtefactError, match="add --data"):
        notes_for(tmp_path / "none", None)


def _card(*entries: tuple[str, dict[str, object], str | None]):
    lineage = tuple(LineageEntry(stage=stage, config=config, parent=parent) for stage, config, parent in entries)
    return dataclasses.replace(make_card(), lineage=lineage)


DONE = _card(("train", {"lr": 1}, None), ("prune", {"to": (8, 4)}, "aa"), ("recover", {"a": 1}, "bb"))


@pytest.mark.parametrize(
    ("card", "steps", "parent", "current"),
    [
        (DONE, [("prune", {"to": [8, 4]}), ("recover", {"a": 1})], "aa", True),
        (DONE, [("recover", {"a": 1})], "bb", True),
        (DONE, [("recover", {"a": 1})], "aa", False),
        (DONE, [("recover", {"a": 2})], "bb", False),
        (DONE, [("prune", {"to": [8, 4]})], "aa", False),
        (DONE, [("x", {})] * 4, None, False),
        (_card(("train", {"lr": 1}, None)), [("train", {"lr": 1.0})], None, True),
        (None, [("train", {})], None, False),
        (DONE, [("recover", None)], "bb", True),
        (DONE, [("recover", None)], "aa", False),
        (DONE, [("prune", None)], "aa", False),
        (DONE.lineage[:2], [("prune", {"to": [8, 4]})], "aa", True),
    ],
)
def test_what_is_current(card, steps, parent, current):
    assert is_current(card, steps, parent) is current


def test_card_if_readable():
    def refuse(_: Path):
        raise ArtefactError("none")

    assert card_if_readable(refuse, Path("x")) is None
    assert card_if_readable(lambda _: DONE, Path("x")) is DONE


def test_data_that_changed_since_training_are_refused(output, tmp_path):
    from tests.zoo.data.folders.test_folder import _fill

    folder = _fill(tmp_path / "pets", {"cat": 10, "dog": 10})
    source = DataSource(name=str(folder))
    card = _card(("train", {"data": source.open().describe()}, None))
    assert source.open_for(card).digest == source.open().digest
    _fill(tmp_path / "pets", {"cat": 1}, start=77)
    open_dataset.cache_clear()
    with pytest.raises(DataError, match=r"has changed since tiny was trained on it.*train again"):
        source.open_for(card)
    assert DataSource(name="digits").open_for(card).name == "digits"


def test_imported_artefacts_have_no_data_until_it_is_named(tmp_path):
    imported, trained = make_card(stages=("import", "prune")), make_card(stages=("train", "prune"))
    assert without_data(tmp_path, imported)
    assert not without_data(tmp_path, trained)
    assert not without_data(tmp_path, make_card())
    assert not without_data(tmp_path, imported, DataSource(name="digits"))
    write_notes(tmp_path, NOTES)
    assert not without_data(tmp_path, imported)
