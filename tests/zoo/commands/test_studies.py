"""The commands sweep, advise, probe and lr-find: output, files and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run_cli
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.checkpoint import read_card
from zoo.training.recipe import load_recipe

NETWORK = ("--model", "resnet10t", "--weights", "none", "--size", "32", "--images-per-split", "60")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "own.toml"
    path.write_text(
        '[defaults]\ndata = "digits"\nimages_per_split = 60\n'
        "train = { epochs = 1, batch_size = 10 }\n\n"
        '[[run]]\nname = "first"\nmodel = "lenet"\n\n[[run]]\nname = "second"\nstart = "first"\n'
    )
    return path


def test_probe_prints_a_table_and_writes_the_best_layer(output: Path) -> None:
    out = output / "probe"
    layers = ("--layer", "layer1", "--layer", "layer2")
    text = run_cli("probe", "digits", *NETWORK, *layers, "--out", out).output
    for word in ("layer1", "layer2", "64", "128", "logistic", "validation top-1", "test top-1"):
        assert word in text
    answer = json.loads(run_cli("probe", "digits", *NETWORK, *layers, "--out", out, "--json").stdout)
    best = answer["probes"][answer["best"]]
    assert best["validation"]["top1"] == max(entry["validation"]["top1"] for entry in answer["probes"])
    card = read_card(out / "model.safetensors")
    assert card.build.layer == best["layer"]
    assert card.metrics("validation").top1 == best["validation"]["top1"]
    assert "validation top-1" in run_cli("evaluate", out).output


def test_probe_writes_nothing_unless_asked(output: Path) -> None:
    answer = json.loads(run_cli("probe", "digits", *NETWORK, "--classifier", "svm", "--json").stdout)
    assert [(entry["layer"], entry["classifier"]) for entry in answer["probes"]] == [("", "svm")]
    assert answer["path"] is None
    assert list(output.iterdir()) == []
    with pytest.raises(UsageError, match="unknown layer 'layer9'; did you mean"):
        run_cli("probe", "digits", *NETWORK, "--layer", "layer9")


def test_advise_writes_a_recipe_that_is_trained_by_the_command_it_prints(output: Path) -> None:
    text = run_cli("advise", "digits", *NETWORK).output
    path = output / "advice" / "digits-resnet10t-scratch.toml"
    assert f"advice: scratch; pocketzoo train --recipe {path}" in text
    for word in ("neighbours in pixels", "chance (validation)", "60 training images"):
        assert word in text
    (run,) = load_recipe(str(path)).run
    assert (run.data, run.size, run.weights, run.images_per_split) == ("digits", 32, "none", 60)
    answer = json.loads(run_cli("advise", "digits", *NETWORK, "--json").stdout)
    assert (answer["strategy"], answer["size"], answer["recipe"]) == ("scratch", "small", str(path))
    assert answer["facts"]["images"] == 60
    trained = run_cli("train", "--recipe", path, "--set", "train.epochs=1", "--json").stdout
    assert json.loads(trained)["card"]["name"] == "digits-resnet10t-scratch"


def test_lr_find_suggests_and_draws(output: Path, recipe: Path) -> None:
    text = run_cli("lr-find", "--recipe", recipe, "--only", "first", "--steps", "40").output
    path = output / "first" / "lr-find.png"
    assert path.is_file()
    for word in ("steepest", "valley", "minimum / 10", str(path)):
        assert word in text
    command = ("lr-find", "--recipe", recipe, "--only", "first", "--steps", "40", "--json")
    answer = json.loads(run_cli(*command).stdout)
    assert 1e-7 < answer["valley"] < 10
    assert len(answer["curve"]["rates"]) <= 40
    assert sorted(entry.name for entry in output.iterdir()) == ["first"]
    assert [entry.name for entry in (output / "first").iterdir()] == ["lr-find.png"], "nothing was trained for good"
    with pytest.raises(ArtefactError, match=r"second starts from first, but there is no .*train that first"):
        run_cli("lr-find", "--recipe", recipe, "--only", "second")


def test_sweep_prints_the_best_and_the_command(output: Path, recipe: Path, tmp_path: Path) -> None:
    search = tmp_path / "search.toml"
    search.write_text('[search]\n"train.lr" = { low = 1e-4, high = 1e-2, log = true }\n')
    command = ("sweep", "--recipe", recipe, "--only", "first", "--search", search, "--study", "mine", "--trials", "3")
    text = run_cli(*command).output
    best = output / "sweeps" / "mine" / "best.toml"
    assert f"pocketzoo train --recipe {best}" in text
    assert "train.lr" in text
    answer = json.loads(run_cli(*command, "--json").stdout)
    assert (answer["states"], answer["recipe"]) == ({"complete": 3}, str(best))
    assert f"validation top-1 {answer['best_value']:.2%}" in text
    assert json.loads(run_cli("train", "--recipe", best, "--json").stdout)["card"]["name"] == "first-best"


def test_mistakes(output: Path, recipe: Path) -> None:
    for command in ("sweep", "lr-find"):
        with pytest.raises(UsageError, match="the recipe has 2 runs; choose one with --only: first, second"):
            run_cli(command, "--recipe", recipe)
        with pytest.raises(UsageError, match="unknown run 'frist'; did you mean first"):
            run_cli(command, "--recipe", recipe, "--only", "frist")
    with pytest.raises(UsageError, match=r"--study is the name of a folder under output/sweeps, got '../x'"):
        run_cli("sweep", "--recipe", recipe, "--only", "first", "--study", "../x")
    assert list(output.iterdir()) == []
