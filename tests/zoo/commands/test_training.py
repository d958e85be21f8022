"""`pocketzoo merge` reads the test split only if it is told to; what commands say of a refit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from serve.models.folder import best_first, scan
from tests.conftest import run_cli
from tests.zoo.factories import TINY_VIT
from zoo.artefact.onnx_file import read_card
from zoo.base.errors import PocketzooError
from zoo.data.catalogue import open_dataset
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


RECIPE = """
[[run]]
name = "first"
model = "lenet"
data = "digits"
images_per_split = 80
test = false
train = { epochs = 1, batch_size = 20 }
"""
GROUPS = ("bench", "explain")
JUDGED = {
    ("evaluate",): "measure it on --split test",
    ("explain", "confusion"): "measure it on --split test",
    ("explain", "training"): "take choices on the artefact that was refitted",
    ("report",): "measure it on --split test",
    ("bench", "compare", "--accuracy", "--peers", "ort"): "a refit was trained on them",
    ("decoding",): "a refit was trained on them",
    ("quantize",): "--calibrate FOLDER compares its answers on other images",
    ("prune", "--out", "somewhere"): "none are left to measure .*; do it with first, which has them",
    ("recalibrate",): "do it with first",
    ("optimize",): "a refit was trained on them",
    ("refit",): "first-refit is a refit of first",
}


def test_train_refit_export_list(output: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE)
    run_cli("train", "--recipe", recipe, "--no-page")
    done = run_cli("refit", output / "first")
    assert "first-refit/model.safetensors: refit of first, no validation accuracy, 2.8 MMACs" in done.stdout
    folder = output / "first-refit"
    assert sorted(path.name for path in folder.iterdir()) == ["log.csv", "model.safetensors", "run.json"]
    exported = run_cli("export", folder, output / "first")
    assert "first-refit: not measured, as it was trained on the validation images, too" in exported.stderr
    card, parent = read_card(folder / "model.onnx"), read_card(output / "first" / "model.onnx")
    assert card.inform.metrics == () and card.use.golden is not None
    assert card.lineage[0].config["data"]["n"] == {"train": 160, "test": 80}
    assert [line.split()[-3:] for line in run_cli("list").stdout.splitlines() if "first-refit" in line] == [
        ["refit", "of", "first"]
    ]
    images = [sample.read() for sample in open_dataset("digits").splits["test"][:2]]
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        (tmp_path / "images" / f"{number}.png").write_bytes(image)
    assert json.loads(run_cli("predict", folder, tmp_path / "images" / "0.png", "--json").stdout)
    assert run_cli("score", folder, tmp_path / "images", "--out", tmp_path / "scores.parquet").exit_code == 0
    assert json.loads(run_cli("evaluate", folder, "--split", "test", "--json").stdout)["n"] == 80
    shown = run_cli("explain", "confusion", folder, "--split", "test").stdout
    assert "first-refit/model.onnx on digits, test split: top-1" in shown
    # The server's default stays what was measured.
    assert best_first(scan(output)) == ["first", "first-refit"]
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for command, reason in JUDGED.items():
        with pytest.raises(PocketzooError, match=reason):
            words = 2 if command[0] in GROUPS else 1
            run_cli(*command[:words], folder, *command[words:])
    assert {path: path.read_bytes() for path in folder.iterdir() if path in before} == before
    assert parent.metrics("validation") is not None
