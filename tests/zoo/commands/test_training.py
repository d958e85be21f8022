"""`pocketzoo train` tells in time what cannot be pruned; `merge` reads the test split only if it is told to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.conftest import run_cli
from tests.zoo.factories import TINY_VIT
from zoo.commands.training import _tell_if_not_prunable
from zoo.training.loop.config import FitConfig
from zoo.training.recipe import LoraConfig, Run
from zoo.training.stage import train


def splits(*arguments: str | Path) -> list[str]:
    card = json.loads(run_cli("merge", *arguments, "--json").stdout)["card"]
    assert [entry["stage"] for entry in card["lineage"]] == ["train", "merge"]
    return [metrics["split"] for metrics in card["inform"]["metrics"]]


def test_merge_reads_the_test_split_where_it_is_asked_to(output: Path) -> None:
    run = Run(
        name="vit",
        model="vit_tiny_patch16_224",
        arguments=TINY_VIT,
        data="digits",
        size=32,
        images_per_split=20,
        test=False,
        lora=LoraConfig(rank=2, alpha=4.0),
        train=FitConfig(epochs=1, batch_size=10),
    )
    folder = train(run, output).parent
    assert splits(folder) == ["validation"]
    (folder / "model.safetensors").unlink()
    assert splits(folder) == ["validation"]
    assert splits(folder, "--test") == ["validation", "test"]
    assert splits(folder) == ["validation", "test"], "up to date"
    assert splits(folder, "--force") == ["validation"]
    assert splits(folder, "--force", "--test") == ["validation", "test"]
    train(dataclasses.replace(run, test=True), output)


def test_what_cannot_be_pruned_is_told_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    swin = {"img_size": 32, "window_size": 2, "depths": [2, 2], "num_heads": [1, 2], "embed_dim": 8}
    _tell_if_not_prunable(Run(name="windows", model="swin_tiny_patch4_window7_224", arguments=swin, size=32))
    assert "windows can be trained and exported, but not pruned: SwinTransformer" in capsys.readouterr().err
    _tell_if_not_prunable(Run(name="plain", model="resnet10t", size=32))
    assert capsys.readouterr().err == ""
