"""Tests of compress.commands.prune."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import run_cli
from tests.zoo.factories import make_card, make_dataset, make_input
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks import checkpoint
from zoo.networks.registry import build
from zoo.training.workspace import DataSource, Notes, write_notes


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


def test_only_what_was_pruned_from_the_same_checkpoint_is_written_over(artefact: Path) -> None:
    out = artefact.parent / "small"
    path = out / "model.safetensors"
    for macs in ("0.8", "0.6"):
        run_cli("prune", artefact, "--out", out, "--macs", macs, "--importance", "l2")
    assert checkpoint.read_card(path).lineage[-1].config["macs"] == 0.6
    other = artefact.parent / "other"
    run_cli("prune", out, "--out", other, "--macs", "0.9", "--importance", "l2")
    run_cli("recover", out, "--teacher", artefact, "--epochs", "1")
    for folder, made in ((out, "small, made by train and prune and recover"), (other, "other, made by")):
        before = (folder / "model.safetensors").read_bytes()
        with pytest.raises(UsageError, match=rf"has another artefact already \({made}.*remove that one yourself"):
            run_cli("prune", artefact, "--out", folder, "--macs", "0.5")
        assert (folder / "model.safetensors").read_bytes() == before
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"another artefact already \(model\.safetensors\)"):
        run_cli("prune", artefact, "--out", out)
    assert path.read_bytes() == b"precious"


def test_recovery_is_not_done_twice_and_reads_the_test_split_where_it_is_asked_to(artefact: Path) -> None:
    out = artefact.parent / "small"
    path = out / "model.safetensors"
    run_cli("prune", artefact, "--out", out, "--macs", "0.8", "--importance", "l2")
    command = ("recover", out, "--teacher", artefact, "--epochs", "1", "--json")
    first = json.loads(run_cli(*command).stdout)
    assert [metrics.split for metrics in checkpoint.read_card(path).inform.metrics] == ["validation"]
    before = path.read_bytes()
    again = run_cli(*command)
    assert json.loads(again.stdout) == first
    assert "small is up to date; --force does it anew" in again.stderr
    assert path.read_bytes() == before
    run_cli(*command, "--test")
    card = checkpoint.read_card(path)
    assert [metrics.split for metrics in card.inform.metrics] == ["validation", "test"]
    assert [entry.stage for entry in card.lineage] == ["train", "prune", "recover"]
    run_cli(*command, "--force")
    run_cli(*command, "--lr", "0.002")
    entries = checkpoint.read_card(path).lineage
    assert [entry.stage for entry in entries] == ["train", "prune", *["recover"] * 3]
    assert [entry.config["fit"]["lr"] for entry in entries[2:]] == [1e-3, 1e-3, 0.002]
    with pytest.raises(UsageError, match=r"is the artefact itself.*name the one it was pruned from"):
        run_cli("recover", out, "--teacher", path)


def test_recalibration_is_not_done_twice(artefact: Path) -> None:
    out, spec = artefact.parent / "normed", make_input(32, "L")
    path = out / "model.safetensors"
    arguments = {"filters": 16, "growth": "equal", "dense": 16, "img_size": 32}
    model = build("cnn5", classes=3, channels=1, arguments=arguments)
    checkpoint.save(
        model, make_card(architecture="cnn5", arguments=arguments, spec=spec, stages=("train", "prune")), path
    )
    (out / "run.json").write_bytes((artefact / "run.json").read_bytes())
    command = ("recalibrate", out, "--images", "8", "--json")
    first = json.loads(run_cli(*command).stdout)
    before = path.read_bytes()
    again = run_cli(*command)
    assert (json.loads(again.stdout), path.read_bytes()) == (first, before)
    assert "normed is up to date" in again.stderr
    run_cli(*command, "--batch-size", "4")
    run_cli(*command, "--batch-size", "4", "--force")
    stages = [entry.stage for entry in checkpoint.read_card(path).lineage]
    assert stages == ["train", "prune", *["recalibrate"] * 3]
