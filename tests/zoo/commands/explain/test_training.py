"""`pocketzoo train` draws the page of its training, and `pocketzoo explain training` draws the same again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import run_cli
from tests.zoo.factories import make_card, make_input
from zoo.base.errors import ArtefactError, UsageError
from zoo.explain.run_page import PAGE
from zoo.networks import checkpoint
from zoo.networks.registry import build

RECIPE = """
[defaults]
data = "digits"
images_per_split = 20
train = { epochs = 2, batch_size = 10, augment = { rotate = 10 }, precision = "float32" }

[[run]]
name = "net"
model = "lenet"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "one.toml"
    path.write_text(RECIPE)
    return path


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_the_page_that_training_draws_can_be_drawn_again(recipe: Path, output: Path) -> None:
    result = run_cli("train", "--recipe", recipe, "--log", "tensorboard")
    folder = output / "net"
    assert f"{PAGE}: curves" in result.stderr
    assert {path.name for path in folder.iterdir()} == {
        "log.csv",
        "model.safetensors",
        "run.json",
        "tensorboard",
        PAGE,
    }
    first = _pixels(folder / PAGE)
    (folder / PAGE).unlink()
    assert str(PAGE) in run_cli("explain", "training", folder).stdout
    assert np.array_equal(_pixels(folder / PAGE), first)


def test_no_page(recipe: Path, output: Path) -> None:
    run_cli("train", "--recipe", recipe, "--no-page")
    assert not (output / "net" / PAGE).exists()
    run_cli("explain", "training", output / "net", "--out", output / "elsewhere.png")
    assert (output / "elsewhere.png").is_file() and not (output / "net" / PAGE).exists()


def test_an_unknown_log_is_refused_before_training(recipe: Path, output: Path) -> None:
    with pytest.raises(UsageError, match="unknown log 'wandbb'"):
        run_cli("train", "--recipe", recipe, "--log", "wandbb")
    assert not (output / "net" / "model.safetensors").exists()


def test_what_was_not_trained_has_no_page(output: Path, tmp_path: Path, recipe: Path) -> None:
    run_cli("train", "--recipe", recipe, "--no-page")
    with pytest.raises(ArtefactError, match="no checkpoint at"):
        run_cli("explain", "training", tmp_path)
    folder = output / "imported"
    card = make_card(tuple("0123456789"), spec=make_input(28, "L"))
    checkpoint.save(build("lenet", classes=10, channels=1), card, folder / "model.safetensors")
    with pytest.raises(ArtefactError, match="records no training"):
        run_cli("explain", "training", folder, "--data", "digits")
