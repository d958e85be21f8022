"""Tests of zoo.validate, on what the recipe `tiny` made."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import run_cli
from tests.zoo.factories import TINY_VIT, make_card, make_input
from zoo.artefact.card import Metrics
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT
from zoo.networks.checkpoint import load, save
from zoo.networks.registry import build
from zoo.networks.stages import Freezing
from zoo.training.loop.config import FitConfig
from zoo.training.loop.masks import Mask
from zoo.validate import best_fine_tuned, load_my_models, write_state_dicts


def test_the_two_best_fine_tuned_vits(made: Path) -> None:
    full, lora = load_my_models()
    for model, name in ((full, "tiny-vit-full"), (lora, "tiny-vit-lora")):
        assert not model.training
        assert type(model).__name__ == "VisionTransformer"
        assert not any("lora" in key for key in model.state_dict())
        assert best_fine_tuned(made)["lora" if model is lora else "full"] == made / name / CHECKPOINT
        with torch.inference_mode():
            assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_state_dicts_load_without_executing_code(made: Path) -> None:
    assert {path.name for path in write_state_dicts(made)} == {"full_model.pt", "lora_model.pt"}
    for name, model in zip(("full_model.pt", "lora_model.pt"), load_my_models(), strict=True):
        state = torch.load(made / name, weights_only=True)
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_before_training_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    with pytest.raises(ArtefactError, match=r"no fine-tuned ViT \(full and no lora\).*run `make train`"):
        load_my_models()


def test_controls_from_scratch_and_pruned_networks_do_not_count(chain: Path, tmp_path: Path) -> None:
    for name in ("tiny-vit-digits", "tiny-vit-full-pruned", "tiny-resnet"):
        (tmp_path / name).mkdir()
        (tmp_path / name / CHECKPOINT).write_bytes((chain / name / CHECKPOINT).read_bytes())
    with pytest.raises(ArtefactError, match="full and no lora"):
        best_fine_tuned(tmp_path)


def _write(folder: Path, name: str, top1: float, *stages: str, **config: Any) -> None:
    """A tiny ViT whose last training was configured so."""
    metrics = Metrics(dataset="d", split="validation", n=9, top1=top1, low=0.0, high=1.0)
    card = make_card(spec=make_input(32), architecture="vit_tiny_patch16_224", arguments=TINY_VIT, stages=stages)
    *before, last = card.lineage
    lineage = (*before, dataclasses.replace(last, config=config))
    card = dataclasses.replace(card, lineage=lineage, inform=dataclasses.replace(card.inform, metrics=(metrics,)))
    save(build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT), card, folder / name / CHECKPOINT)


def test_what_was_trained_in_part_is_not_fully_fine_tuned(tmp_path: Path) -> None:
    plain = {"fit": dataclasses.asdict(FitConfig()), "weights": "pretrained", "mask": None}
    _write(tmp_path, "full", 0.2, "train", **plain)
    _write(tmp_path, "lora", 0.1, "train", "merge")
    for name, change in (
        ("head", {"fit": dataclasses.asdict(FitConfig(freeze=Freezing(stages=1)))}),
        ("gradual", {"fit": dataclasses.asdict(FitConfig(freeze=Freezing(unfreeze=(0, 1))))}),
        ("norms", {"fit": dataclasses.asdict(FitConfig(freeze=Freezing(norms_only=True)))}),
        ("mask", {"mask": dataclasses.asdict(Mask())}),
    ):
        _write(tmp_path, name, 0.9, "train", **plain | change)
    _write(tmp_path, "probe", 0.9, "train", method="probe", weights="pretrained")
    _write(tmp_path, "probe-of-trained", 0.9, "train", "train", method="probe")
    assert best_fine_tuned(tmp_path)["full"] == tmp_path / "full" / CHECKPOINT
    _write(tmp_path, "after-head", 0.3, "train", "train", **plain | {"weights": "none"})
    assert best_fine_tuned(tmp_path)["full"] == tmp_path / "after-head" / CHECKPOINT


def test_accuracies_on_different_data_are_not_compared(chain: Path, tmp_path: Path) -> None:
    for name in ("tiny-vit-full", "tiny-vit-lora"):
        shutil.copytree(chain / name, tmp_path / name)
    model, card = load(chain / "tiny-vit-full" / CHECKPOINT)
    metrics = dataclasses.replace(card.inform.metrics[0], dataset="photos", top1=1.0)
    easy = dataclasses.replace(card, inform=dataclasses.replace(card.inform, metrics=(metrics,)))
    save(model, easy, tmp_path / "photos" / CHECKPOINT)
    assert best_fine_tuned(tmp_path)["full"] == tmp_path / "tiny-vit-full" / CHECKPOINT


def test_from_any_working_directory(made: Path, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r}); import validate_project1 as v; print(len(v.load_my_models()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"


def test_training_leaves_the_state_dicts(made: Path) -> None:
    (made / "full_model.pt").unlink(missing_ok=True)
    run_cli("train", "--recipe", "tiny")
    assert (made / "full_model.pt").is_file()
