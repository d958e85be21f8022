"""The recipes of the reference experiments, from download to checkpoint, on tiny archives in the official layouts."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import zoo.training.recipe
from tests.conftest import run_cli
from tests.zoo.data.conftest import data_home, site  # noqa: F401 (fixtures)
from tests.zoo.data.sources.test_flowers import flowers  # noqa: F401 (fixture)
from tests.zoo.data.sources.test_imagewoof import woof  # noqa: F401 (fixture)
from tests.zoo.data.sources.test_inaturalist import CLASSES, _files, archive  # noqa: F401 (fixture)
from tests.zoo.data.sources.test_pets import pets  # noqa: F401 (fixture)
from tests.zoo.factories import TINY_VIT, encode, picture
from zoo.networks.checkpoint import read_card
from zoo.training.recipe import load_recipe, recipe_names

VIT = ["--model", "vit_tiny_patch16_224", *(f"--set=arguments.{key}={value}" for key, value in TINY_VIT.items())]
RESNET = ["--model", "resnet10t"]
FAST = ["--weights", "none", "--set", "size=32", "--set", "train.epochs=1", "--set", "train.batch_size=8"]
PETS = {
    "pets": VIT,
    "pets-dog-cat": RESNET,
    "pets-depth": [*RESNET, "--set", "train.views=0"],
    "pets-gradual": [*RESNET, "--set", "train.freeze.unfreeze=[0, 0, 0]"],
    "pets-imbalanced": RESNET,
    "pets-few-labels": [*RESNET, "--set", "labels=0.3"],
}


def _run(name: str, output: Path, *arguments: str, only: str = "") -> None:
    chosen = ["--only", only] if only else []
    done = run_cli("train", "--recipe", name, *FAST, *arguments, *chosen)
    assert done.exit_code == 0
    for run in load_recipe(name).run:
        if only not in ("", run.artefact):
            continue
        card = read_card(output / run.artefact / "model.safetensors")
        assert card.metrics("validation") is not None
        assert (card.metrics("test") is not None) is run.test
        assert run.artefact in done.output


@pytest.mark.parametrize("name", PETS)
def test_pets(pets, output, name):  # noqa: F811
    _run(name, output, *PETS[name])


def test_every_recipe_of_pets_was_run():
    # `forgetting-pets` has a command of its own.
    assert {name for name in recipe_names() if name.startswith("pets")} == set(PETS)


@pytest.mark.parametrize("data", ["imagewoof", "imagewoof_clean"])
def test_woof(woof, output, data):  # noqa: F811
    _run("woof", output, *VIT, "--data", data)
    card = read_card(output / "woof-full" / "model.safetensors")
    assert ("overlapping" in card.metrics("test").dataset) is (data == "imagewoof")


def test_inaturalist(archive, output):  # noqa: F811
    archive(_files(CLASSES))
    _run("inat10", output, "--set", "arguments.img_size=32", only="inat10-scratch")
    _run("inat10", output, *RESNET, only="inat10-resnet50")


def test_the_ablation(tmp_path, output):
    folder = tmp_path / "photographs"
    for label in ("ant", "bee"):
        (folder / label).mkdir(parents=True)
        for number in range(12):
            (folder / label / f"{number}.jpg").write_bytes(encode(picture(number + 50 * (label == "bee")), "JPEG"))
    arguments = ["--data", str(folder), "--model", "mobilenetv3_small_050"]
    done = run_cli("train", "--recipe", "ablate", *FAST, *arguments)
    assert done.exit_code == 0
    runs = load_recipe("ablate", data=str(folder)).run
    assert len(runs) >= 10
    for run in runs:
        card = read_card(output / run.artefact / "model.safetensors")
        assert card.metrics("test") is None
        assert run.artefact in done.output


def test_forgetting_pets(pets, flowers, output, tmp_path):  # noqa: F811
    own = (Path(zoo.training.recipe.__file__).parents[1] / "recipes/forgetting-pets.toml").read_text()
    big = 'model = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"\nweights = "pretrained"\n'
    small = ", ".join(f"{key} = {value}" for key, value in TINY_VIT.items())
    assert own.count(big) == 1
    path = tmp_path / "small.toml"
    path.write_text(own.replace(big, f'model = "vit_tiny_patch16_224"\narguments = {{ {small} }}\n'))
    done = run_cli("forgetting", "--recipe", str(path), "--set", "size=32", "--set", "train.epochs=1")
    assert done.exit_code == 0
    rows = list(csv.DictReader((output / "forgetting" / "small.csv").read_text().splitlines()))
    assert len(rows) == 7
