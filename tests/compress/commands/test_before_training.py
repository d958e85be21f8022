"""What `pocketzoo train` is told before it begins: what `pocketzoo compress` would refuse afterwards."""

from __future__ import annotations

import pytest

from compress.commands.prune import _tell_if_not_prunable
from zoo.commands.training import BEFORE_TRAINING
from zoo.training.recipe import Run


def test_what_cannot_be_pruned_is_told_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    swin = {"img_size": 32, "window_size": 2, "depths": [2, 2], "num_heads": [1, 2], "embed_dim": 8}
    _tell_if_not_prunable(Run(name="windows", model="swin_tiny_patch4_window7_224", arguments=swin, size=32))
    assert "windows can be trained and exported, but not pruned: SwinTransformer" in capsys.readouterr().err
    _tell_if_not_prunable(Run(name="plain", model="resnet10t", size=32))
    assert capsys.readouterr().err == ""
    assert _tell_if_not_prunable in BEFORE_TRAINING
