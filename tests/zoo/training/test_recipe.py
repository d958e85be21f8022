"""Recipes: merging, overriding, refusing; and every recipe that comes with the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zoo.base.errors import UsageError
from zoo.networks.registry import names
from zoo.training.recipe import LoraConfig, QuantizeConfig, Run, load_recipe, recipe_names

FOLDER = Path(__file__).resolve().parents[3] / "zoo" / "recipes"


def _write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def _load(tmp_path: Path, text: str, **options: object):
    return load_recipe(_write(tmp_path, text), **options).run


TWO = """
[defaults]
data = "digits"
train = { epochs = 3, lr = 0.01 }
[[run]]
model = "lenet"
train = { lr = 0.1, augment = { area = [0.5, 1] } }
[[run]]
name = "second"
model = "resnet10t"
lora = {}
"""


def test_defaults_lie_below_every_run(tmp_path):
    first, second = _load(tmp_path, TWO)
    assert (first.artefact, second.artefact) == ("digits-lenet", "second")
    assert (first.train.epochs, first.train.lr, first.train.augment.area) == (3, 0.1, (0.5, 1.0))
    assert (second.train.epochs, second.train.lr, second.train.augment.area) == (3, 0.01, (1.0, 1.0))
    assert first.lora is None and second.lora == LoraConfig()


def test_flags_and_settings_lie_above(tmp_path):
    settings = ["train.epochs=7", "train.optimizer=sgd", "train.augment.flip=true", "lora.rank=2", "train.lr=1e-4"]
    for run in _load(tmp_path, TWO, data="mnist5k", model="cnn", weights="pretrained", settings=settings):
        assert (run.data, run.model, run.weights) == ("mnist5k", "cnn", "pretrained")
        assert (run.train.epochs, run.train.optimizer, run.train.augment.flip, run.train.lr) == (7, "sgd", True, 1e-4)
        assert run.lora and run.lora.rank == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 0}, r"quantize\.images \(--images\) must be at least 1, got 0"),
        ({"target": "vni"}, r"quantize\.target.*did you mean vnni"),
        ({"calibration": "minmacs"}, r"quantize\.calibration.*did you mean minmax"),
        ({"calibration": "entropy"}, r"quantize\.calibration entropy is no longer there.*use mse.*else minmax"),
        ({"method": "statik"}, r"quantize\.method.*did you mean static"),
    ],
)
def test_settings_of_quantization_are_checked_early(changes, message):
    with pytest.raises(UsageError, match=message):
        QuantizeConfig(**changes)


def test_an_artefact_is_named_after_its_data_and_model():
    assert Run(data="some/where/pets", model="lenet").artefact == "pets-lenet"
    assert Run(data="digits", model="lenet").artefact == "digits-lenet"
    assert Run(data="digits", model="lenet", name="x").artefact == "x"


RUN = '[[run]]\ndata = "digits"\nmodel = "lenet"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[run]", r"mine\.toml: not valid TOML"),
        ("", r"mine\.toml: has no \[\[run\]\]"),
        ("defaults = 3", r"expected one table \[defaults\] and tables \[\[run\]\]"),
        ('[run]\nmodel = "lenet"', r"expected one table \[defaults\] and tables \[\[run\]\]"),
        (RUN + 'train.augment.padding = "zero"', r"augment\.padding: expected zeros, border or reflection, got 'zero'"),
        (RUN + "[train]\nlr = 1", r"mine\.toml: unknown table 'train'; "),
        (RUN + "modle = 1", r"mine\.toml\.run\[0\]: unknown key 'modle'; did you mean model"),
        (RUN + "train.learning_rate = 1", r"run\[0\]\.train: unknown key 'learning_rate'"),
        (RUN + "train.epochs = 1.5", r"run\[0\]\.train\.epochs: expected int, got 1\.5"),
        (RUN + "train.augment.area = [1, 1, 1]", r"run\[0\]\.train\.augment\.area: expected 2 values, got 3"),
        (RUN + 'role = "teacher"', r"role must be 'model' or 'control', got 'teacher'"),
        (RUN + 'start = "a"\nweights = "pretrained"', r"give `start` or `weights`, not both"),
        (RUN + 'start = "later"', r"run 'digits-lenet' starts from 'later', which no earlier run makes"),
        (RUN + "size = 0", "size must be at least 1, got 0; leave it out"),
        (RUN + "size = [32, 0]", "size must be at least 1, got 32 x 0; leave it out"),
        (RUN + "size = [32]", r"run\[0\]\.size: expected 2 values, got 1"),
        (RUN + 'size = "wide"', "size: expected an edge or HEIGHTxWIDTH in pixels, like 224 or 224x320, got 'wide'"),
        (RUN + "reading.range = 0", r"reading\.range must be a positive number, got 0; leave it out"),
        (RUN + "reading.range = true", r"run\[0\]\.reading\.range: expected float, got True"),
        (RUN + "images_per_split = -3", "images_per_split must be at least 1, got -3"),
        *((RUN + f'name = "{name}"', "name must be that of a plain folder") for name in ("..", ".", "a/b", ".a", "/a")),
        (RUN + RUN, r"two runs are called 'digits-lenet'"),
        (RUN + '[[run]]\nname = "b"\ndata = "digits"\nmodel = "lenet"\nstart = "digits-lenet"', "has its own model"),
        ('[[run]]\nmodel = "lenet"', r"mine\.toml has no data set of its own; add --data FOLDER"),
        ('[[run]]\ndata = "digits"', r"mine\.toml has no model of its own; add --model NAME"),
    ],
)
def test_what_is_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        _load(tmp_path, text)


@pytest.mark.parametrize("written", ["[32, 48]", '"32x48"', '"32 48"'])
def test_input_that_is_not_square(tmp_path, written):
    (run,) = _load(tmp_path, RUN + f"size = {written}")
    assert run.size == (32, 48)
    (run,) = _load(tmp_path, RUN + "size = 28", settings=["size=32x48", "reading.range=4095"])
    assert (run.size, run.reading.range) == ((32, 48), 4095.0)


def test_a_start_is_an_earlier_run(tmp_path):
    text = RUN + 'name = "first"\n' + '[[run]]\ndata = "digits"\nname = "second"\nstart = "first"\n'
    assert [run.start for run in _load(tmp_path, text)] == ["", "first"]


@pytest.mark.parametrize("setting", ["train.lr", "=3", "train..lr=3", "train.l r=3", "[x]=1"])
def test_settings_that_are_no_key_and_value(tmp_path, setting):
    with pytest.raises(UsageError, match=r"--set expects KEY=VALUE like train\.lr=0\.001, got "):
        _load(tmp_path, TWO, settings=[setting])


def test_settings_with_unknown_keys_list_close_ones(tmp_path):
    with pytest.raises(UsageError, match=r"train: unknown key 'epoch'; did you mean epochs"):
        _load(tmp_path, TWO, settings=["train.epoch=3"])


def test_unknown_recipes_list_close_ones(tmp_path):
    with pytest.raises(UsageError, match=r"'quikstart'; did you mean quickstart"):
        load_recipe("quikstart")
    with pytest.raises(UsageError, match=r"unknown recipe \(or TOML file that does not exist\)"):
        load_recipe(str(tmp_path / "none.toml"))


def test_every_recipe_is_in_the_list_of_recipes():
    listed = re.findall(r"`([a-z0-9-]+)`", (FOLDER.parents[1] / "docs" / "guides" / "training.md").read_text())
    assert set(recipe_names()) <= set(listed)


def test_the_projects_recipes_are_found():
    assert len(recipe_names()) == 17


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_opens_with_its_facts(name):
    text = (FOLDER / f"{name}.toml").read_text()
    for fact in ("Reproduces:", "Command:", "Hardware:", "Minutes:", "Expected:"):
        assert fact in text.partition("\n[")[0], fact
        # In one of the first lines as a placeholder, it would be a number that nobody has seen.
        assert fact.upper().rstrip(":") not in text, fact
    own = {} if 'data = "' in text else {"data": "digits", "model": "lenet"}
    runs = load_recipe(name, **own).run
    assert runs
    assert {run.model.split(".")[0] for run in runs if run.model} <= set(names())
