"""What `pocketzoo train` is told before it begins: what `pocketzoo compress` would refuse afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.commands import prune
from compress.commands.prune import _tell_if_not_prunable
from tests.compress.prune.test_stage import Padded
from zoo.commands.training import BEFORE_TRAINING
from zoo.training.recipe import Run


@pytest.fixture(autouse=True)
def _a_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    monkeypatch.setattr(prune, "code_commit", lambda: "abc")


def test_what_is_known_is_not_found_out_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(prune, "_refusal", lambda run: asked.append(run.model) or "no such layers")
    for model in ("a", "a", "b"):
        _tell_if_not_prunable(Run(name="x", model=model))
    assert asked == ["a", "b"]
    assert capsys.readouterr().err == "x can be trained and exported, but not pruned: no such layers\n" * 3
    monkeypatch.setattr(prune, "code_commit", lambda: "abc-dirty")
    for _ in range(2):
        _tell_if_not_prunable(Run(name="x", model="a"))
    assert asked == ["a", "b", "a", "a"]


def test_what_cannot_be_pruned_is_told_before_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("zoo.networks.registry.build", lambda *_, **__: Padded())
        _tell_if_not_prunable(Run(name="odd", model="resnet18", size=32))
    assert "odd can be trained and exported, but not pruned: Padded cannot be pruned" in capsys.readouterr().err
    # Windows of attention are kept, and what lies between them is pruned.
    swin = {"img_size": 32, "window_size": 2, "depths": [2, 2], "num_heads": [1, 2], "embed_dim": 8}
    _tell_if_not_prunable(Run(name="windows", model="swin_tiny_patch4_window7_224", arguments=swin, size=32))
    _tell_if_not_prunable(Run(name="plain", model="resnet10t", size=32))
    assert capsys.readouterr().err == ""
    assert _tell_if_not_prunable in BEFORE_TRAINING
