"""Artefacts with random weights: whole, pruned and INT8, made by the stages themselves."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench.runtimes import compare as peers
from bench.runtimes import random_weights as shapes
from bench.runtimes.families import families
from bench.runtimes.random_weights import ShapesConfig, _settle, make_artefacts, noise
from tests.bench.processes import Processes
from tests.conftest import run_cli
from tests.zoo.factories import make_input
from zoo.artefact.decode import decode
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import Predictor
from zoo.base.errors import UsageError
from zoo.data.decoded import DecodedImages, Normalise
from zoo.networks.checkpoint import load
from zoo.training.parents import find_parent

CONFIG = ShapesConfig(macs=0.5, size=28, classes=3, images=4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        # Their speed matters where one of two ways to quantize is chosen by it: in transformers.
        patch.setattr(shapes, "quantize", functools.partial(shapes.quantize, timed=False))
        return make_artefacts("lenet", tmp_path_factory.mktemp("shapes"), CONFIG)


def test_four_graphs_that_run(made: list[Path]) -> None:
    (family,) = families(made)
    assert [(network.name, network.form) for network in family] == [("lenet", "parent"), ("lenet-pruned", "pruned")]
    images = np.random.default_rng(0).standard_normal((2, 3, 28, 28), dtype=np.float32)
    for folder in made:
        for name, precision in (("model.onnx", "float32"), ("model.int8.onnx", "int8")):
            predictor = Predictor(folder / name)
            assert predictor.card.inform.precision == precision
            logits = predictor.logits(images)
            assert logits.shape == (2, 3)
            assert 1e-4 < np.abs(logits).max() < 1e3, "activations died or exploded"
    whole, small = (read_card(folder / "model.onnx") for folder in made)
    assert 0.3 < small.inform.macs / whole.inform.macs <= 0.5
    assert (
        find_parent(made[1] / "model.int8.onnx", read_card(made[1] / "model.int8.onnx"), []) == made[1] / "model.onnx"
    )
    assert load(made[0] / "model.safetensors")[1].inform.macs == whole.inform.macs


def test_norms_get_the_scale_and_statistics_of_trained_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.zeros_(norm.weight)
    images = DecodedImages(noise(8, (8, 8)), make_input(8))
    _settle(model, images)
    assert norm.weight.tolist() == [1.0] * 4
    normalised = norm(
        model[0](Normalise(images.spec, torch.device("cpu"))(torch.stack([image for image, _ in images])))
    )
    assert normalised.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert normalised.var(dim=(0, 2, 3)).tolist() == pytest.approx([1.0] * 4, rel=0.02)


def test_noise_is_always_the_same_and_has_no_label() -> None:
    first, again = noise(3, (8, 12)), noise(3, (8, 12))
    assert [sample.digest for sample in first] == [sample.digest for sample in again]
    assert len({sample.digest for sample in first}) == 3
    assert {sample.label for sample in first} == {-1}
    assert {decode(sample.read()).size for sample in first} == {(12, 8)}


def test_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--classes must be at least 2, got 1"):
        ShapesConfig(classes=1)
    with pytest.raises(UsageError, match="unknown model 'resnet81'; did you mean resnet18"):
        make_artefacts("resnet81", tmp_path, CONFIG)


def test_the_command(made: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    asked = []

    def fake(model: str, folder: Path, config: ShapesConfig) -> list[Path]:
        asked.append((model, config))
        return made

    monkeypatch.setattr(shapes, "make_artefacts", fake)
    monkeypatch.setattr(peers, "alternate", Processes())
    options = ("--macs", "0.5", "--size", "28", "--classes", "3", "--peers", "ort")
    done = run_cli("bench", "shapes", "lenet", *options)
    assert [(model, config.macs, config.size, config.classes) for model, config in asked] == [("lenet", 0.5, 28, 3)]
    for title in ("FP32", "pruned", "INT8", "pruned INT8"):
        assert title in done.output
    assert "`pocketzoo bench shapes lenet --macs 0.5" in (tmp_path / "bench" / "shapes.md").read_text()
