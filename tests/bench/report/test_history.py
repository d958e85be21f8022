"""Logs and comparisons as they are found on disk, whole, of another training, or broken."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from bench.report.history import LOG, read_curves, read_peers
from tests.bench.artefacts import TRAIN, write_checkpoint
from tests.zoo.factories import make_card
from zoo.artefact.card import Card, LineageEntry

_HEAD = "epoch,lr,loss,validation_loss,validation_top1,seconds\n"
_ROWS = "1,0.001,2.0,1.5,0.4,3.0\n2,0.002,nan,1.0,0.6,3.0\n"


def card(epochs: int = 2, best: int = 2) -> Card:
    trained = LineageEntry(stage="train", config={}, parent=None, summary={"epochs": epochs, "best_epoch": best})
    pruned = LineageEntry(stage="prune", config={}, parent="0" * 64, summary={})
    return dataclasses.replace(make_card(), lineage=(trained, pruned))


def test_a_log_of_the_lineages_training(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text(_HEAD + _ROWS)
    (curve,), problems = read_curves([(tmp_path, card())])
    assert (curve.artefact, curve.stage, curve.best_epoch, problems) == (tmp_path.name, "train", 2, ())
    assert [row["validation_top1"] for row in curve.epochs] == [0.4, 0.6]
    assert [row["loss"] for row in curve.epochs] == [2.0, None]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_HEAD + _ROWS + _ROWS, "has 4 epochs and the lineage says 2"),
        ("epoch,loss\n1,2\n", "cannot be read"),
        (_HEAD + "1,a,b,c,d,e\n", "cannot be read"),
        (_HEAD + "1,2\n", "cannot be read"),
    ],
)
def test_other_logs_are_told_of(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / LOG).write_text(text)
    curves, (problem,) = read_curves([(tmp_path, card())])
    assert curves == ()
    assert said in problem


def test_a_training_without_a_log_is_told_of(tmp_path: Path) -> None:
    curves, (problem,) = read_curves([(tmp_path, card())])
    assert (curves, "stage 1 (train) is not shown" in problem) == ((), True)
    assert read_curves([(tmp_path, dataclasses.replace(card(), lineage=()))]) == ((), ())


def test_an_ancestors_log_is_found_by_its_lineage(tmp_path: Path) -> None:
    first = dataclasses.replace(TRAIN, summary={"epochs": 2, "best_epoch": 2})
    tuned = dataclasses.replace(first, parent="1" * 64, summary={"epochs": 2, "best_epoch": 1})
    other = dataclasses.replace(first, seconds=first.seconds + 1)
    for name, stage in (("first", first), ("another", other)):
        write_checkpoint(tmp_path / name, (stage,))
        (tmp_path / name / LOG).write_text(_HEAD + _ROWS)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / LOG).write_text(_HEAD + _ROWS)
    tuned_card = dataclasses.replace(make_card(), lineage=(first, tuned))
    curves, problems = read_curves([(tmp_path / "tuned", tuned_card)], [tmp_path])
    assert ([curve.artefact for curve in curves], problems) == (["first", "tuned"], ())


def test_comparisons_that_cannot_be_read_are_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    assert (read_peers({"0"}).rows, read_peers({"0"}).problem) == ((), "")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "compare.jsonl").write_text("{}\n")
    assert "compare.jsonl:1: batch: expected a value, got nothing" in read_peers({"0"}).problem
