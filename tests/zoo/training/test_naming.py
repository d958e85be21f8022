"""Artefacts of other data are never written over."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from tests.zoo.data.folders.test_folder import _fill
from tests.zoo.factories import make_card
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import CHECKPOINT
from zoo.data.catalogue import open_dataset
from zoo.networks.checkpoint import save
from zoo.networks.registry import build
from zoo.training.loop.config import FitConfig
from zoo.training.naming import named_apart, trained_networks
from zoo.training.recipe import Run
from zoo.training.stage import train
from zoo.training.workspace import DataSource, Notes, write_notes

CLASSES = {"cat": 8, "dog": 8}


def _run(folder: Path, **changes: object) -> Run:
    return Run(data=str(folder), model="lenet", train=FitConfig(epochs=1, batch_size=8), **changes)  # type: ignore[arg-type]


def _named(run: Run, output: Path) -> str:
    open_dataset.cache_clear()
    (found,) = named_apart([run], output)
    return found.artefact


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders of the same name with other images."""
    first = _fill(tmp_path / "a" / "photos", CLASSES)
    return first, _fill(tmp_path / "b" / "photos", CLASSES, start=50)


def test_two_folders_of_one_name_become_two_artefacts(output: Path, two: tuple[Path, Path]) -> None:
    first, second = map(_run, two)
    assert named_apart([first], output) == (first,), "a run that keeps its name stays as it is"
    train(first, output)
    other = _named(second, output)
    assert other.startswith("photos-lenet-") and len(other) == len("photos-lenet-") + 6
    train(dataclasses.replace(second, name=other), output)
    assert [_named(run, output) for run in (first, second, first)] == ["photos-lenet", other, "photos-lenet"]
    shutil.rmtree(output / "photos-lenet")
    assert _named(second, output) == other, "it goes on with its own, though the plain name is free again"
    assert trained_networks(second.data, output) == ["lenet"]
    assert trained_networks(first.data, output) == []


def test_a_folder_that_was_moved_finds_its_artefact(output: Path, two: tuple[Path, Path], tmp_path: Path) -> None:
    train(_run(two[0]), output)
    (tmp_path / "c").mkdir()
    moved = two[0].rename(tmp_path / "c" / "photos")
    assert _named(_run(moved), output) == "photos-lenet"
    _fill(moved, {"cat": 1}, start=90)
    assert _named(_run(moved), output) != "photos-lenet", "it may be another folder of that name"


def test_what_has_only_begun_is_not_written_over_either(output: Path, two: tuple[Path, Path]) -> None:
    source = DataSource(name=str(two[0]))
    write_notes(output / "photos-lenet", Notes(role="model", data=source, test=source))
    assert _named(_run(two[1]), output) == "photos-lenet", "nothing was computed yet"
    (output / "photos-lenet" / "state.pt").write_bytes(b"")
    assert _named(_run(two[0]), output) == "photos-lenet"
    assert _named(_run(two[1]), output) != "photos-lenet"


def test_a_pruned_artefact_of_other_data_keeps_its_name(output: Path, two: tuple[Path, Path]) -> None:
    source = DataSource(name=str(two[0]))
    write_notes(output / "photos-lenet-pruned", Notes(role="model", data=source, test=source))
    (output / "photos-lenet-pruned" / "model.onnx").write_bytes(b"")
    assert _named(_run(two[0]), output) == "photos-lenet"
    assert _named(_run(two[1]), output) != "photos-lenet"


def test_runs_with_names_and_those_that_start_from_them(output: Path) -> None:
    card = make_card(stages=("train",))
    save(build("lenet", classes=3, channels=3), card, output / "first" / CHECKPOINT)
    runs = [Run(name="first", data="digits", model="lenet"), Run(name="second", data="digits", start="first")]
    first, second = named_apart(runs, output)
    assert first.artefact.startswith("first-") and second.artefact == "second"
    assert second.start == first.artefact


def test_both_names_are_taken(output: Path, two: tuple[Path, Path]) -> None:
    train(_run(two[0]), output)
    other = _named(_run(two[1]), output)
    shutil.copytree(output / "photos-lenet", output / other)
    with pytest.raises(ArtefactError, match=r"are not known to be of .*--set name=NAME"):
        _named(_run(two[1]), output)


@pytest.mark.parametrize("name", ["x:y", ".hidden"])
def test_a_name_that_the_server_refuses(output: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="a model cannot be called"):
        _named(_run(_fill(tmp_path / name, CLASSES)), output)
