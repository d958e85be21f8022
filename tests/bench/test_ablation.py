"""Rows of an ablation come from the cards of its checkpoints, and its table from the rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from bench import rows as kinds
from bench.ablation import RECIPE, gather, markdown
from bench.publish import publish, render
from tests.conftest import run_cli
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, sha256_file
from zoo.networks import checkpoint
from zoo.training.recipe import run_names

MINE = """
[defaults]
data = "digits"
model = "lenet"
images_per_split = 20
role = "control"
test = false
train = { epochs = 2, batch_size = 10, lr = 1e-3 }
[[run]]
name = "mine-default"
[[run]]
name = "mine-smoothing"
train.label_smoothing = 0.1
[[run]]
name = "mine-masked"
mask = { fraction = 0.5, by = "random" }
"""
NAMES = ["mine-default", "mine-smoothing", "mine-masked"]
TRAIN = ("train", "--no-page", "--recipe")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, and below `output` its three runs."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "mine.toml").write_text(MINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_OUTPUT", str(folder / "output"))
        assert run_cli(*TRAIN, folder / "mine.toml").exit_code == 0
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return list(gather(folder / "output", str(folder / "mine.toml")))


def change_card(path: Path, **summary: Any) -> None:
    """Write a checkpoint with other results of its training; a None takes one out."""
    model, card = checkpoint.load(path)
    entry = card.lineage[-1]
    found = {name: value for name, value in {**entry.summary, **summary}.items() if value is not None}
    lineage = (*card.lineage[:-1], dataclasses.replace(entry, summary=found))
    checkpoint.save(model, dataclasses.replace(card, lineage=lineage), path)


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    for path in trained.rglob("*"):
        if path.name in (CHECKPOINT, "mine.toml"):
            target = tmp_path / path.relative_to(trained)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path


def test_a_row_per_run_and_what_it_changes(trained: Path, tmp_path: Path) -> None:
    rows = rows_of(trained)
    assert [(row["recipe"], row["name"]) for row in rows] == [("mine", name) for name in NAMES]
    assert [set(row["changes"]) for row in rows] == [set(), {"train.label_smoothing"}, {"mask"}]
    assert rows[1]["changes"]["train.label_smoothing"] == [0.0, 0.1]
    assert rows[2]["changes"]["mask"][0] is None
    for row in rows:
        path = trained / "output" / row["name"] / CHECKPOINT
        card = checkpoint.read_card(path)
        metrics, summary = card.metrics("validation"), card.lineage[-1].summary
        assert metrics
        assert (row["dataset"], row["n"], row["epochs"], row["device"]) == ("digits", 20, 2, summary["device"])
        assert (row["top1"], row["low"], row["high"]) == (metrics.top1, metrics.low, metrics.high)
        assert (row["seconds"], row["cpu_seconds"]) == (summary["seconds"], summary["cpu_seconds"])
        assert row["digest"] == sha256_file(path)
        assert {"torch", "timm"} <= set(row["environment"]["versions"])
        assert card.metrics("test") is None
    kinds.append(tmp_path / kinds.ABLATION, rows)
    assert kinds.read(tmp_path / kinds.ABLATION) == rows


def test_the_table(trained: Path) -> None:
    rows = rows_of(trained)
    numbers = {"top1": 0.9, "low": 0.85, "high": 0.95, "epochs": 2, "seconds": 61.4, "cpu_seconds": 118.6}
    lines = markdown([row | numbers for row in rows]).splitlines()
    assert lines[0].startswith("`mine` on digits, validation (n = 20), trained on cpu; ")
    assert lines[2].startswith("| run | what it changes | top-1 % |")
    assert lines[4:6] == [
        "| mine-default | - | 90.0 | 85.0-95.0 | 2 | 61 | 119 |",
        "| mine-smoothing | train.label_smoothing: 0.0 -> 0.1 | 90.0 | 85.0-95.0 | 2 | 61 | 119 |",
    ]
    assert lines[6].startswith("| mine-masked | mask: none -> ")
    assert len(lines) == 7
    assert markdown([]) == ""


def test_what_is_left_out_is_said(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_card(copied / "output" / NAMES[2] / CHECKPOINT, environment=None)
    (copied / "output" / NAMES[1] / CHECKPOINT).unlink()
    assert [row["name"] for row in rows_of(copied)] == NAMES[:1]
    said = capsys.readouterr().err
    assert "1 of 3 runs are not trained: mine-smoothing" in said
    assert "mine-masked is left out: its card does not say on which machine it was trained; train it again" in said
    (copied / "output" / NAMES[0] / CHECKPOINT).unlink()
    assert rows_of(copied) == []
    assert "no rows, as all are held against mine-default" in capsys.readouterr().err


def test_publishing_keeps_the_rows_of_a_clean_commit(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.ablation.RECIPE", str(copied / "mine.toml"))
    output, kept = copied / "output", copied / "kept"
    environment = checkpoint.read_card(output / NAMES[0] / CHECKPOINT).lineage[-1].summary["environment"]
    for name in NAMES:
        change_card(output / name / CHECKPOINT, environment={**environment, "commit": "0123456789ab"})
    change_card(output / NAMES[1] / CHECKPOINT, environment={**environment, "commit": "0123456789ab-dirty"})
    with pytest.raises(ArtefactError, match=r"mine-smoothing: environment.commit: expected .*, got '0123456789ab-dir"):
        publish(output, kept, [])
    change_card(output / NAMES[1] / CHECKPOINT, environment={**environment, "commit": "0123456789ab"})
    (copied / "page.md").write_text("<!-- rows: ablation -->\n<!-- end of rows -->\n")
    publish(output, kept, [copied / "page.md"])
    assert [row["name"] for row in kinds.read(kept / kinds.ABLATION)] == NAMES
    assert render("ablation", kept) in (copied / "page.md").read_text()
    assert "| mine-smoothing | train.label_smoothing: 0.0 -> 0.1 |" in (copied / "page.md").read_text()


def test_the_recipe_has_names_and_begins_with_the_default() -> None:
    assert run_names(RECIPE)[0] == f"{RECIPE}-default"
    assert len(run_names(RECIPE)) > 2
