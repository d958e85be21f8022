"""Tests of zoo.cli.pruning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import run_cli
from tests.zoo.factories import make_card, make_dataset, make_input
from zoo import checkpoint
from zoo.errors import ArtefactError, UsageError
from zoo.models.registry import build
from zoo.workspace import DataSource, Notes, write_notes


@pytest.fixture
def artefact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A LeNet, with a data set that is made up wherever it is opened."""
    folder = tmp_path / "lenet"
    torch.manual_seed(0)
    spec = make_input(28, "L")
    checkpoint.save(
        build("lenet", classes=3, channels=1), make_card(spec=spec, stages=("train",)), folder / "model.safetensors"
    )
    source = DataSource(name="tiny")
    write_notes(folder, Notes(role="model", data=source, test=source))
    monkeypatch.setattr(DataSource, "open", lambda self: make_dataset())
    return folder


def test_plan_is_a_table_and_writes_nothing(artefact: Path) -> None:
    before = sorted(artefact.parent.rglob("*"))
    lines = run_cli("prune", artefact, "--macs", "0.5", "--plan").output.splitlines()
    assert lines[0].split() == ["layer", "what", "goes", "before", "after", "MACs", "saved", "%"]
    first = lines[1].split()
    assert (first[1], int(first[2]) > int(first[3]) > 0) == ("channels", True)
    (macs,) = [line.split() for line in lines if line.startswith("million multiply-accumulates")]
    assert float(macs[-1]) <= 50
    assert float(macs[-1]) == pytest.approx(100 * float(macs[-2]) / float(macs[-3]), abs=3)
    assert any(line.startswith("MB ") for line in lines)
    assert sorted(artefact.parent.rglob("*")) == before


def test_json_has_every_step(artefact: Path) -> None:
    options = ("--params", "0.4", "--importance", "taylor", "--scope", "global", "--images", "6", "--steps", "2")
    found = json.loads(run_cli("prune", artefact, "--plan", "--json", *options).output)
    assert (found["importance"], found["scope"]) == ("taylor", "global")
    assert found["parameters_after"] <= 0.4 * found["parameters_before"]
    assert found["ratio"] == found["macs_after"] / found["macs_before"]
    assert set(found["steps"][0]) == {"layer", "unit", "before", "after", "macs"}


def test_a_pruned_artefact_knows_its_data(artefact: Path) -> None:
    out = artefact.parent / "small"
    assert "million parameters" in run_cli("prune", artefact, "--out", out, "--macs", "0.6").output
    card = checkpoint.read_card(out / "model.safetensors")
    assert card.name == "small"
    assert (out / "run.json").read_text() == (artefact / "run.json").read_text()
    again = run_cli("recover", out, "--teacher", artefact, "--epochs", "1", "--distill", "0.5", "--temperature", "3")
    assert "best validation top-1" in again.output
    entry = checkpoint.read_card(out / "model.safetensors").lineage[-1]
    assert (entry.stage, entry.config["distill"], entry.config["temperature"]) == ("recover", 0.5, 3.0)


def test_wrong_usage(artefact: Path) -> None:
    with pytest.raises(UsageError, match="--out FOLDER is missing"):
        run_cli("prune", artefact)
    with pytest.raises(UsageError, match="is the artefact itself"):
        run_cli("prune", artefact, "--out", artefact)
    with pytest.raises(UsageError, match="give one goal, got macs and params"):
        run_cli("prune", artefact, "--plan", "--macs", "0.5", "--params", "0.5")
    with pytest.raises(ArtefactError, match="has no BatchNorm to recalibrate"):
        run_cli("recalibrate", artefact)
