"""What a command trains when no recipe is named, and its flags."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_cli
from tests.zoo.data.folders.test_folder import _fill
from zoo.base.errors import ArtefactError, UsageError
from zoo.commands.runs import chosen_runs, recipe_name, with_flags
from zoo.data.catalogue import open_dataset

CLASSES = {"cat": 8, "dog": 8}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return _fill(tmp_path / "photos", CLASSES)


def _card(*arguments: str | Path) -> dict[str, Any]:
    open_dataset.cache_clear()
    found: dict[str, Any] = json.loads(run_cli("train", *arguments, "--json").stdout.splitlines()[-1])["card"]
    return found


def test_data_or_a_model_mean_the_recipe_for_folders(output: Path, photos: Path, capsys: Any) -> None:
    (run,) = chosen_runs(None, str(photos), None, None, None, None)
    assert (run.model, run.weights, run.train.epochs, run.train.freeze.norm) == (
        "tf_efficientnet_lite0",
        "pretrained",
        8,
        "freeze",
    )
    assert "network: tf_efficientnet_lite0 (74.8 % ImageNet top-1" in capsys.readouterr().err
    (run,) = chosen_runs(None, "digits", "lenet", None, None, None)
    assert (run.artefact, run.train.epochs, run.weights) == ("digits-lenet", 8, "pretrained")
    with pytest.raises(UsageError, match="has no data set of its own; add --data FOLDER"):
        chosen_runs(None, None, "lenet", None, None, None)
    assert [run.artefact for run in chosen_runs(None, None, None, None, None, ["resnet"])] == ["resnet"]


def test_random_weights_have_the_settings_of_training_from_scratch(output: Path, photos: Path) -> None:
    for recipe in (None, "auto"):
        (run,) = chosen_runs(recipe, str(photos), "resnet10t", "none", None, None)
        fit = run.train
        assert (fit.epochs, fit.lr, fit.head_factor, fit.freeze.norm, fit.augment.area) == (
            60,
            1e-3,
            1.0,
            "update",
            (0.25, 1.0),
        )
        assert fit.augment.flip and fit.label_smoothing == 0.1
        (pretrained,) = chosen_runs(recipe, str(photos), "resnet10t", None, None, None)
        assert pretrained.recover == run.recover, "compress need not know the first weights"
    (run,) = chosen_runs(None, str(photos), "resnet10t", "none", ["train.lr=0.5"], None)
    assert run.train.lr == 0.5


def test_the_recipe_by_its_former_name_is_the_same(output: Path, photos: Path, capsys: Any) -> None:
    assert recipe_name("folder", None, None) == recipe_name(None, "photos", None) == recipe_name("auto", None, None)
    assert (recipe_name(None, None, None), recipe_name("tiny", "photos", None)) == ("quickstart", "tiny")
    found, told = [], []
    for recipe in (None, "auto", "folder"):
        found += chosen_runs(recipe, str(photos), "resnet10t", None, None, None)
        told.append("recipe folder is called auto now" in capsys.readouterr().err)
    assert found[0] == found[1] == found[2]
    assert told == [False, False, True]


def test_what_is_decided_is_said_and_kept(output: Path, photos: Path) -> None:
    options = ("--data", photos, "--model", "resnet10t", "--weights", "none", "--set", "size=32", "--epochs", "2")
    said = run_cli("train", "--recipe", "auto", *options).stderr.replace("\n", " ")
    expected = (
        r"photos-resnet10t: 8 training images, 3 to 5 of each of 2 labels; 2 epochs of 1 steps of (\d+) images; [\d,]+ "
    )
    found = re.search(expected + r"weights of all \d+ stages learn", said)
    assert found
    card = json.loads(run_cli("show", output / "photos-resnet10t").output)
    assert card["lineage"][0]["config"]["fit"]["batch_size"] == int(found[1])
    assert card["lineage"][0]["summary"]["precision"] in ("float32", "bf16")
    written = (output / "photos-resnet10t" / "model.safetensors").stat().st_mtime_ns
    # Without the name it is the same recipe, and what was decided holds: nothing is trained again.
    assert "training images" not in run_cli("train", *options).stderr
    assert (output / "photos-resnet10t" / "model.safetensors").stat().st_mtime_ns == written
    for command in (("export", "--recipe", "auto"), ("export",)):
        run_cli(*command, "--data", photos)
    assert (output / "photos-resnet10t" / "model.onnx").is_file()


def test_frozen_statistics_of_random_weights_are_told(output: Path, photos: Path) -> None:
    options = ("--data", photos, "--model", "resnet10t", "--weights", "none", "--set", "size=32", "--epochs", "1")
    told = "keeps the statistics of BatchNorm as pretrained, but the weights are random"
    assert told in run_cli("train", *options, "--set", "train.freeze.norm=freeze").stderr.replace("\n", " ")
    assert told not in run_cli("train", *options).stderr


def test_a_flag_that_the_search_varies_is_refused(output: Path, photos: Path) -> None:
    for flag, key in (("--batch-size", "train.batch_size"), ("--epochs", "train.epochs")):
        search = photos.parent / "search.toml"
        search.write_text(f'[search]\n"{key}" = {{ low = 2, high = 4 }}\n')
        with pytest.raises(UsageError, match=rf"{flag} 3 would have no effect, as --search .* varies {key}"):
            run_cli(
                *("sweep", "--data", photos, "--model", "lenet", "--weights", "none", "--search", search),
                *("--trials", "1", flag, "3"),
            )


def test_two_folders_of_one_name(output: Path, photos: Path, tmp_path: Path, capsys: Any) -> None:
    options = ("--model", "lenet", "--weights", "none", "--epochs", "1", "--batch-size", "8", "--lr", "0.002")
    first = _card("--data", photos, *options)
    assert (first["name"], first["lineage"][0]["config"]["fit"]["epochs"]) == ("photos-lenet", 1)
    assert first["lineage"][0]["config"]["fit"]["batch_size"] == 8
    assert first["lineage"][0]["config"]["fit"]["lr"] == 0.002
    before = (output / "photos-lenet" / "model.safetensors").read_bytes()
    other = _fill(tmp_path / "b" / "photos", CLASSES, start=50)
    second = _card("--data", other, *options)
    assert second["name"].startswith("photos-lenet-")
    assert second["lineage"][0]["config"]["data"]["digest"] != first["lineage"][0]["config"]["data"]["digest"]
    assert (output / "photos-lenet" / "model.safetensors").read_bytes() == before
    assert _card("--data", other, *options)["name"] == second["name"], "it goes on with its own"
    # Neither of these commands is told the network: it is the one that was trained on the folder.
    (run,) = chosen_runs(None, str(other), None, None, None, None, made=True)
    assert (run.model, run.artefact) == ("lenet", second["name"])
    assert "validation top-1" in run_cli("export", "--data", other).output
    assert (output / second["name"] / "model.onnx").is_file()
    assert not (output / "photos-lenet" / "model.onnx").exists()
    shutil.rmtree(output / second["name"])
    with pytest.raises(ArtefactError, match="no checkpoint at"):
        run_cli("compress", "--data", other, "--model", "lenet")


def test_a_name_that_the_server_refuses_is_refused_before_training(output: Path, tmp_path: Path) -> None:
    folder = _fill(tmp_path / "x:y", CLASSES)
    with pytest.raises(UsageError, match=r"cannot be called 'x:y-lenet'.*no ':'.*--set name=NAME"):
        run_cli("train", "--data", folder, "--model", "lenet", "--weights", "none")
    assert not list(output.glob("*lenet*"))


def test_flags_are_settings() -> None:
    assert with_flags(None) == []
    assert with_flags(["size=32"], epochs=3, lr=1e-5, batch_size=4) == [
        "size=32",
        "train.epochs=3",
        "train.lr=1e-05",
        "train.batch_size=4",
    ]
    assert with_flags(None, minutes=0.5) == ["minutes=0.5"]
    assert with_flags(None, layout="classes", path_column="it's") == [
        "reading.layout='classes'",
        'reading.path_column="it\'s"',
    ]


@pytest.mark.parametrize(
    ("settings", "flags", "message"),
    [
        ([], {"epochs": 3, "minutes": 1.0}, "--minutes sets the number of epochs, and so does --epochs"),
        (["train.lr=0.1"], {"lr": 0.2}, "--lr and --set train.lr say the same; give one of them"),
        (["size=3", "train.epochs=7"], {"epochs": 7}, "--epochs and --set train.epochs say the same"),
    ],
)
def test_flags_that_contradict(settings: list[str], flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_flags(settings, **flags)


def test_what_export_would_not_use_is_refused(output: Path, photos: Path) -> None:
    for option in (("--model", "lenet"), ("--recipe", "tiny"), ("--only", "tiny-resnet"), ("--set", "size=3")):
        with pytest.raises(UsageError, match="say which artefacts of a recipe are meant"):
            run_cli("export", output / "some", *option)
