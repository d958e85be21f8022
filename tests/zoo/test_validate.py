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
from zoo.training.loop.methods.masks import Mask
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


PLAIN = {"fit": dataclasses.asdict(FitConfig()), "weights": "pretrained", "mask": None}


def _pair(folder: Path, name: str, top1: float, dataset: str = "d") -> None:
    _write(folder, f"{name}-full", top1, "train", dataset=dataset, **PLAIN)
    _write(folder, f"{name}-lora", top1, "train", "merge", dataset=dataset)


def _write(folder: Path, name: str, top1: float | None, *stages: str, dataset: str = "d", **config: Any) -> None:
    """A tiny ViT whose last training was configured so; measured if it has a top1."""
    metrics = () if top1 is None else (Metrics(dataset=dataset, split="validation", n=9, top1=top1, low=0.0, high=1.0),)
    card = make_card(spec=make_input(32), architecture="vit_tiny_patch16_224", arguments=TINY_VIT, stages=stages)
    *before, last = card.lineage
    lineage = (*before, dataclasses.replace(last, config=config))
    card = dataclasses.replace(card, lineage=lineage, inform=dataclasses.replace(card.inform, metrics=metrics))
    save(build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT), card, folder / name / CHECKPOINT)


def test_what_was_trained_in_part_is_not_fully_fine_tuned(tmp_path: Path) -> None:
    plain = PLAIN
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


def test_the_quickstarts_pair_goes_before_better_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    _pair(tmp_path, "mine", 0.9)
    _pair(tmp_path, "vit", 0.1)
    assert {path.parent.name for path in best_fine_tuned(tmp_path).values()} == {"vit-full", "vit-lora"}
    shutil.rmtree(tmp_path / "vit-lora")
    assert {path.parent.name for path in best_fine_tuned(tmp_path).values()} == {"mine-full", "mine-lora"}


BROKEN = {
    "cut": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "text": lambda whole: b"no safetensors file",
    "of another schema": lambda whole: whole.replace(b"zoo.card/1", b"zoo.card/9"),
    "without a card": lambda whole: whole.replace(b"zoo.card", b"zoo.crad"),
    "with a header of four GiB": lambda whole: b"\xff\xff\xff\xff\x00\x00\x00\x00" + whole[8:],
    "of an unknown network": lambda whole: whole.replace(b"vit_tiny_patch16_224", b"vit_tiny_patch99_224"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_neighbour_is_skipped_with_a_note(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    _pair(tmp_path, "good", 0.5)
    _write(tmp_path, "neighbour", 0.9, "train", **PLAIN)
    path = tmp_path / "neighbour" / CHECKPOINT
    path.write_bytes(BROKEN[kind](path.read_bytes()))
    full, _ = load_my_models()
    wanted = load(tmp_path / "good-full" / CHECKPOINT)[0].state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in full.state_dict().items())
    noted = capsys.readouterr().err
    assert noted.startswith("skipped: ") and str(path) in noted


def test_only_headers_are_read_of_a_hundred_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    _pair(tmp_path, "good", 0.5)
    for number in range(100):
        shutil.copytree(tmp_path / "good-full", tmp_path / f"neighbour-{number}")
    loaded: list[Path] = []

    def counted(path: Path) -> Any:
        loaded.append(path)
        return load(path)

    monkeypatch.setattr("zoo.validate.load", counted)
    load_my_models()
    write_state_dicts(tmp_path)
    assert [path.parent.name for path in loaded] == ["good-full", "good-lora"] * 2


def test_an_explicit_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    _pair(tmp_path, "vit", 0.9)
    _pair(tmp_path, "other", 0.1)
    _pair(tmp_path, "birds", 0.1, dataset="birds")
    chosen: list[str] = []

    def told(path: Path) -> Any:
        chosen.append(path.parent.name)
        return load(path)

    monkeypatch.setattr("zoo.validate.load", told)
    for options, names in (
        ({"full": "other-full"}, ["other-full", "vit-lora"]),
        ({"lora": tmp_path / "birds-lora"}, ["birds-full", "birds-lora"]),
        ({"full": str(tmp_path / "birds-full" / CHECKPOINT), "lora": "vit-lora"}, ["birds-full", "vit-lora"]),
    ):
        chosen.clear()
        load_my_models(**options)
        assert chosen == names
    monkeypatch.setenv("POCKETZOO_LORA", "other-lora")
    for options, names in (({}, ["vit-full", "other-lora"]), ({"lora": "vit-lora"}, ["vit-full", "vit-lora"])):
        chosen.clear()
        load_my_models(**options)
        assert chosen == names


def test_a_wrong_choice_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    _pair(tmp_path, "vit", 0.9)
    _write(tmp_path, "alone", 0.5, "train", dataset="birds", **PLAIN)
    _write(tmp_path, "scratch", 0.5, "train", **PLAIN | {"weights": "none"})
    for options, message in (
        ({"full": "none"}, "full='none': no checkpoint at none"),
        (
            {"full": "vit-lora"},
            "full='vit-lora': expected a fully fine-tuned ViT that is not pruned, got a LoRA-merged",
        ),
        ({"lora": "scratch"}, "lora='scratch': expected a LoRA-merged ViT .* got vit_tiny_patch16_224 after train"),
        ({"full": "alone"}, "no LoRA-merged ViT on birds under .*alone.*; name one: lora=... or POCKETZOO_LORA"),
    ):
        with pytest.raises(ArtefactError, match=message):
            load_my_models(**options)
    (tmp_path / "vit-lora" / CHECKPOINT).write_bytes(b"broken")
    monkeypatch.setenv("POCKETZOO_LORA", "vit-lora")
    with pytest.raises(ArtefactError, match=r"POCKETZOO_LORA=vit-lora: .*not a safetensors file"):
        load_my_models()


def test_beside_the_checkout_where_the_working_directory_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, here = tmp_path / "checkout", tmp_path / "here"
    for folder in (checkout, here / "output"):
        folder.mkdir(parents=True)
    monkeypatch.delenv("POCKETZOO_OUTPUT", raising=False)
    monkeypatch.chdir(here)
    monkeypatch.setattr("zoo.validate.PROJECT", checkout)
    _pair(checkout / "output", "theirs", 0.5)
    with pytest.raises(ArtefactError, match=r"no fine-tuned ViT .*here.output"):
        load_my_models()  # installed packages: that output/ is somebody else's
    (checkout / "pyproject.toml").touch()
    assert len(load_my_models()) == 2
    _write(here / "output", "mine", 0.5, "train", **PLAIN)
    with pytest.raises(ArtefactError, match=r"no fine-tuned ViT \(lora\) under .*here.output"):
        load_my_models()


def test_training_leaves_the_state_dicts(made: Path) -> None:
    (made / "full_model.pt").unlink(missing_ok=True)
    run_cli("train", "--recipe", "tiny")
    assert (made / "full_model.pt").is_file()


def test_a_refit_counts_only_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    _pair(tmp_path, "mine", 0.5)
    config = PLAIN | {"refit": {"of": "mine-full", "temperature": 1.0}, "data": {"name": "d"}}
    _write(tmp_path, "mine-full-refit", None, "train", **config)
    assert best_fine_tuned(tmp_path)["full"] == tmp_path / "mine-full" / CHECKPOINT
    full, lora = load_my_models(full="mine-full-refit")
    for model, name in ((full, "mine-full-refit"), (lora, "mine-lora")):
        wanted = load(tmp_path / name / CHECKPOINT)[0].state_dict()
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in model.state_dict().items())
