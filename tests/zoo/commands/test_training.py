"""`pocketzoo merge` reads the test split only if it is told to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tests.conftest import run_cli
from tests.zoo.factories import TINY_VIT
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
