"""Sweeps: what a study remembers, and that it survives its processes."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import optuna
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from PIL import Image

from zoo.base.errors import ArtefactError, DataError, TrainingError, UsageError
from zoo.networks.checkpoint import read_card
from zoo.studies.sweep import SweepConfig, sweep
from zoo.studies.sweep_report import best_recipe
from zoo.studies.sweep_space import Distribution, read_search
from zoo.training.loop.fit import EpochResult, FitConfig
from zoo.training.recipe import Run, load_recipe

RUN = Run(
    name="lenet", model="lenet", data="digits", images_per_split=20, train=FitConfig(epochs=2, batch_size=10, lr=1e-3)
)
SPACE = {
    "train.lr": FloatDistribution(low=1e-4, high=1e-1, log=True),
    "train.batch_size": IntDistribution(5, 10, step=5),
    "train.optimizer": CategoricalDistribution(['"sgd"', '"adamw"']),
}


def run_sweep(folder: Path, trials: int, *, run: Run = RUN, space: dict[str, Distribution] = SPACE, **options):
    return sweep([run], run, space, folder, SweepConfig(trials=trials, **options), start=folder / "artefacts")


def trained(monkeypatch, outcome):
    """Replace training: `outcome(run)` is the validation top-1 of each epoch, or an error."""

    def train(run, output, *, on_epoch, test):
        assert test is False, "a sweep must not read the test split"
        path = output / run.name / "model.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"weights")
        found = outcome(run)
        for epoch, top1 in enumerate(found, start=1):
            on_epoch(EpochResult(epoch=epoch, loss=1.0, validation_loss=1.0, validation_top1=top1, seconds=0.0))
        results[path] = max(found)
        return path

    class Card:
        def __init__(self, path):
            self.path = path

        def metrics(self, split):
            assert split == "validation"
            return type("Metrics", (), {"top1": results[self.path]})

    results: dict[Path, float] = {}
    monkeypatch.setattr("zoo.studies.sweep.train", train)
    monkeypatch.setattr("zoo.studies.sweep.read_card", Card)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_real_trainings_give_a_recipe_tables_and_pictures(tmp_path):
    folder = tmp_path / "study"
    found = run_sweep(folder, 3)
    assert found.states == {"complete": 3}
    table = rows(folder / "trials.csv")
    assert [row["trial"] for row in table] == ["0", "1", "2"]
    assert found.best_value == max(float(row["validation_top1"]) for row in table)
    assert [entry.key for entry in found.correlations] == list(SPACE)
    best = folder / "trials" / f"trial-{found.best_trial}" / "model.safetensors"
    assert list((folder / "trials").glob("*/*.safetensors")) == [best], "only the best checkpoint is kept"
    assert len(list((folder / "trials").glob("*/log.csv"))) == 3
    card = read_card(best)
    assert [metrics.split for metrics in card.inform.metrics] == ["validation"], "the test split was not read"
    assert card.metrics("validation").top1 == found.best_value
    (run,) = load_recipe(str(found.recipe)).run
    assert run.name == "lenet-best"
    assert run.train.lr == found.best_settings["train.lr"]
    assert f'"{run.train.optimizer}"' == found.best_settings["train.optimizer"]
    assert dataclasses.replace(run, name="lenet", train=RUN.train) == RUN
    assert dataclasses.asdict(run.train) | {"lr": 0, "batch_size": 0, "optimizer": ""} == dataclasses.asdict(
        RUN.train
    ) | {"lr": 0, "batch_size": 0, "optimizer": ""}
    for picture in found.pictures:
        with Image.open(picture) as image:
            assert image.format == "PNG"
            assert image.width > 700


def test_best_recipe_brings_the_runs_it_starts_from(tmp_path, monkeypatch):
    parent = tmp_path / "artefacts" / "lenet" / "model.safetensors"
    parent.parent.mkdir(parents=True)
    parent.write_bytes(b"parent")
    seen: list[Path] = []
    trained(monkeypatch, lambda run: [seen.append(Path(run.start)) or 0.5])
    child = Run(name="child", start="lenet", data="digits", images_per_split=20)
    space = {"train.lr": SPACE["train.lr"]}
    config = SweepConfig(trials=1)
    found = sweep([RUN, child], child, space, tmp_path / "s", config, start=tmp_path / "artefacts")
    assert seen == [parent.parent], "trials are elsewhere, and find their start all the same"
    assert [(run.name, run.start) for run in load_recipe(str(found.recipe)).run] == [
        ("lenet", ""),
        ("child-best", "lenet"),
    ]
    parent.write_bytes(b"another")
    with pytest.raises(UsageError, match="belongs to another start"):
        sweep([RUN, child], child, space, tmp_path / "s", config, start=tmp_path / "artefacts")
    parent.unlink()
    with pytest.raises(ArtefactError, match=r"child starts from lenet, but there is no .*train that first"):
        sweep([RUN, child], child, space, tmp_path / "s", config, start=tmp_path / "artefacts")


def test_the_same_command_continues_to_the_wanted_number(tmp_path, monkeypatch):
    calls: list[str] = []
    trained(monkeypatch, lambda run: [calls.append(run.name) or 0.5])
    run_sweep(tmp_path / "s", 2)
    run_sweep(tmp_path / "s", 2)
    assert calls == ["trial-0", "trial-1"]
    assert run_sweep(tmp_path / "s", 5).states == {"complete": 5}
    assert calls == [f"trial-{number}" for number in range(5)]


def test_another_seed_tries_other_values_and_the_same_one_the_same(tmp_path, monkeypatch):
    tried: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        trained(monkeypatch, lambda run, name=name: [tried[name].append(run.train.lr) or 0.5])
        run_sweep(tmp_path / name, 3, seed=seed)
    assert tried["a"] == tried["b"] != tried["c"]


def test_minutes_end_the_command_after_a_trial(tmp_path, monkeypatch):
    trained(monkeypatch, lambda run: [0.5])
    clock = iter([0.0, 0.0, 40.0, 80.0])
    monkeypatch.setattr("zoo.studies.sweep.time.monotonic", lambda: next(clock))
    assert run_sweep(tmp_path / "s", 9, minutes=1).states == {"complete": 2}


def test_hopeless_trials_are_pruned(tmp_path, monkeypatch):
    epochs: dict[str, int] = {}

    def outcome(run):
        level = 0.9 if len(epochs) < 5 else 0.1
        epochs[run.name] = 0
        for epoch in range(4):
            epochs[run.name] = epoch + 1
            yield level

    trained(monkeypatch, lambda run: _Lazy(outcome(run)))
    found = run_sweep(tmp_path / "s", 6)
    assert found.states == {"complete": 5, "pruned": 1}
    assert list(epochs.values()) == [4, 4, 4, 4, 4, 2], "pruned at its second epoch"
    assert not list((tmp_path / "s" / "trials" / "trial-5").glob("*.safetensors"))
    epochs.clear()
    assert run_sweep(tmp_path / "t", 6, pruner="none").states == {"complete": 6}


class _Lazy:
    """Iterated once, and then compared: top-1 of each epoch as it comes."""

    def __init__(self, values):
        self.values = values
        self.seen: list[float] = []

    def __iter__(self):
        if self.seen:
            return iter(self.seen)
        return self._first()

    def _first(self):
        for value in self.values:
            self.seen.append(value)
            yield value


def test_correlations_have_a_sign(tmp_path, monkeypatch):
    trained(monkeypatch, lambda run: [run.train.lr * 5])
    found = run_sweep(tmp_path / "s", 8)
    lr, _, optimizer = found.correlations
    assert (lr.key, lr.spearman, lr.n) == ("train.lr", pytest.approx(1.0), 8)
    assert lr.p < 0.01
    assert lr.importance > optimizer.importance
    assert (optimizer.spearman, optimizer.p) == (None, None), "names have no order"
    trained(monkeypatch, lambda run: [1 - run.train.lr * 5])
    assert run_sweep(tmp_path / "t", 8).correlations[0].spearman == pytest.approx(-1.0)
    table = rows(tmp_path / "s" / "correlations.csv")
    assert table[0] == {
        "key": "train.lr",
        "importance": str(lr.importance),
        "spearman": str(lr.spearman),
        "n": "8",
        "p": str(lr.p),
    }
    assert table[2]["spearman"] == ""


def test_an_interrupted_trial_is_begun_again_with_its_values(tmp_path, monkeypatch):
    tried: list[tuple[str, float]] = []

    def outcome(run):
        tried.append((run.name, run.train.lr))
        if len(tried) == 2:
            raise KeyboardInterrupt
        return [0.5]

    trained(monkeypatch, outcome)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tmp_path / "s", 3)
    found = run_sweep(tmp_path / "s", 3)
    assert found.states == {"complete": 3, "fail": 1}
    assert tried[1] == tried[2], "the same folder, so training resumes there, and the same values"
    assert [name for name, _ in tried] == ["trial-0", "trial-1", "trial-1", "trial-3"]


def test_epochs_that_are_done_once_more_are_reported_once(tmp_path, monkeypatch):
    """state.pt is not written after every epoch: what came after it is repeated, with the same result."""
    begun = []

    def outcome(run):
        begun.append(run.name)
        yield 0.25
        yield 0.5
        if len(begun) == 1:
            raise KeyboardInterrupt
        yield 0.75

    trained(monkeypatch, lambda run: Epochs(outcome(run)))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(tmp_path / "s", 1, pruner="none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_sweep(tmp_path / "s", 1, pruner="none")
    assert begun == ["trial-0", "trial-0"]
    assert [(row["state"], row["epochs"]) for row in rows(tmp_path / "s" / "trials.csv")] == [
        ("fail", "2"),
        ("complete", "3"),
    ]


class Epochs(list):
    """The epochs of a training that may stop between two of them; afterwards, all of them."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def __iter__(self):
        if self:
            yield from super().__iter__()
            return
        for value in self.epochs:
            self.append(value)
            yield value


def test_a_sweep_under_torchrun_is_refused(tmp_path, monkeypatch):
    trained(monkeypatch, lambda run: [0.5])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"`pocketzoo sweep` does not run under torchrun.*start it several times"):
        run_sweep(tmp_path / "s", 1)
    assert not (tmp_path / "s").exists()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run_sweep(tmp_path / "s", 1).states == {"complete": 1}


def test_a_trial_that_is_interrupted_too_often_is_given_up(tmp_path, monkeypatch):
    def outcome(run):
        raise KeyboardInterrupt

    trained(monkeypatch, outcome)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            run_sweep(tmp_path / "s", 1)
    values: list[str] = []
    trained(monkeypatch, lambda run: [values.append(run.name) or 0.5])
    assert run_sweep(tmp_path / "s", 1).states == {"complete": 1, "fail": 4}
    assert values == ["trial-4"], "not trial-0 for a fifth time"


def test_a_training_that_diverges_counts_and_is_not_repeated(tmp_path, monkeypatch):
    def outcome(run):
        if run.name == "trial-0":
            raise TrainingError("the loss is nan")
        return [0.5]

    trained(monkeypatch, outcome)
    found = run_sweep(tmp_path / "s", 2)
    assert (found.states, found.best_trial) == ({"complete": 1, "fail": 1}, 1)

    def diverging(run):
        raise TrainingError("the loss is nan")

    trained(monkeypatch, diverging)
    with pytest.raises(TrainingError, match=r"no trial of the study 't' was completed.*the loss is nan"):
        run_sweep(tmp_path / "t", 2)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee the documentation"),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
)
def test_a_trial_that_runs_out_of_memory_ends_and_is_not_repeated(tmp_path, monkeypatch, capsys, error):
    tried: list[str] = []

    def outcome(run):
        tried.append(run.name)
        if len(tried) == 1:
            raise error
        return [0.5]

    trained(monkeypatch, outcome)
    assert run_sweep(tmp_path / "s", 3).states == {"complete": 2, "fail": 1}
    assert tried == ["trial-0", "trial-1", "trial-2"]
    reason = str(error).partition("\n")[0] or "MemoryError"
    assert f"trial 0: failed: too little memory for these settings ({reason})" in capsys.readouterr().err


def test_what_torch_says_when_there_is_no_memory_is_understood(tmp_path, monkeypatch):
    trained(monkeypatch, lambda run: [torch.empty(1 << 60).sum()])
    with pytest.raises(TrainingError, match="the last one failed: too little memory for these settings"):
        run_sweep(tmp_path / "s", 1)


def test_a_mistake_of_the_program_is_not_taken_for_a_bad_trial(tmp_path, monkeypatch):
    def outcome(run):
        raise RuntimeError("shapes do not match")

    trained(monkeypatch, outcome)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_sweep(tmp_path / "s", 1)


@pytest.mark.parametrize("kind", [UsageError, DataError])
def test_settings_that_the_data_refuse_are_a_failed_trial(tmp_path, monkeypatch, kind):
    def outcome(run):
        if run.train.optimizer == "sgd":
            raise kind(f"{run.name}: hue wants colours")
        return [0.5]

    trained(monkeypatch, outcome)
    found = run_sweep(tmp_path / "s", 6)
    assert set(found.states) == {"complete", "fail"} and sum(found.states.values()) == 6
    assert found.best_settings["train.optimizer"] == '"adamw"'

    def refused(run):
        raise kind(f"{run.name}: hue wants colours")

    trained(monkeypatch, refused)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"no trial of .*'fail': 2.*the last one failed: trial-1: hue wants"):
            run_sweep(tmp_path / "t", 2)


def test_settings_that_do_not_go_together_are_a_failed_trial(tmp_path, monkeypatch):
    trained(monkeypatch, lambda run: [0.5])
    space = {
        "train.freeze.stages": CategoricalDistribution(["1", "2"]),
        "train.freeze.norms_only": CategoricalDistribution(["true"]),
        "train.freeze.norm_affine": CategoricalDistribution(["true", "false"]),
    }
    found = run_sweep(tmp_path / "s", 6, space=space)
    assert set(found.states) == {"complete", "fail"} and sum(found.states.values()) == 6
    assert found.best_settings["train.freeze.norm_affine"] == "true"


def test_the_best_recipe_is_read_in_any_folder(tmp_path, monkeypatch):
    for name in ("photos", "others"):
        (tmp_path / name).mkdir()
    (tmp_path / "first.pt").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    parent = Run(name="parent", model="lenet", data="others", weights="first.pt", test_on="digits")
    child = Run(name="child", start="parent", data="photos", test_on="others")
    recipe = tmp_path / "best.toml"
    recipe.write_bytes(best_recipe([parent, child], child, {}, ["title"]))
    monkeypatch.chdir(tmp_path.parent)
    first, second = load_recipe(str(recipe)).run
    assert (first.data, first.test_on) == (str(tmp_path / "others"), "digits")
    assert first.weights == str(tmp_path / "first.pt")
    assert (second.data, second.test_on) == (str(tmp_path / "photos"), str(tmp_path / "others"))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"run": dataclasses.replace(RUN, model="resnet10t", size=32)}, "recipe"),
        ({"run": dataclasses.replace(RUN, data="mnist5k")}, "data"),
        ({"space": {"train.lr": SPACE["train.lr"]}}, "search space"),
    ],
)
def test_a_study_of_something_else_is_refused(tmp_path, monkeypatch, change, what):
    trained(monkeypatch, lambda run: [0.5])
    run_sweep(tmp_path / "s", 1)
    with pytest.raises(UsageError, match=f"'s' in .* belongs to another {what}.*name another --study"):
        run_sweep(tmp_path / "s", 1, **change)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.lrr": FloatDistribution(low=1.0, high=2.0)}, "unknown key 'lrr'; did you mean lr"),
        ({"trian.lr": FloatDistribution(low=1.0, high=2.0)}, "unknown key 'trian'; did you mean train"),
        ({"train.lr.high": FloatDistribution(low=1.0, high=2.0)}, "train.lr: expected float, got {'high': 1.0}"),
        (
            {"train.batch_size.high": FloatDistribution(low=1.0, high=2.0)},
            "train.batch_size: expected int, got {'high': 1.0}",
        ),
        ({"train.lr": FloatDistribution(low=-1.0, high=2.0)}, "lr must be a positive number, got -1"),
        ({"train.epochs": CategoricalDistribution(["1", "2.5"])}, "train.epochs: expected int, got 2.5"),
        ({"data": CategoricalDistribution(['"digits"', '"mnist5k"'])}, "'data' cannot be searched"),
    ],
)
def test_keys_and_values_are_checked_before_the_first_trial(tmp_path, monkeypatch, space, message):
    trained(monkeypatch, lambda run: pytest.fail("a trial began"))
    with pytest.raises(UsageError, match=re.escape(message)):
        run_sweep(tmp_path / "s", 1, space=space)
    assert not (tmp_path / "s").exists()


def test_no_warning_and_no_log_of_optuna_reaches_the_user(tmp_path, monkeypatch, capsys):
    trained(monkeypatch, lambda run: [0.5])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_sweep(tmp_path / "s", 2)
    assert not [entry for entry in caught if issubclass(entry.category, optuna.exceptions.ExperimentalWarning)]
    shown = capsys.readouterr().err
    assert "trial 0: validation top-1 50.00%; best so far 50.00%" in shown
    assert "study.db" not in shown
    assert "[I " not in shown


def test_search_files(tmp_path):
    assert read_search("finetune")["train.lr"] == FloatDistribution(low=1e-5, high=1e-2, log=True)
    path = tmp_path / "own.toml"
    path.write_text(
        '[search]\n"train.epochs" = { low = 2, high = 6, step = 2 }\ntrain.lr = { low = 1e-3, high = 1 }\n'
        "train.augment.area = { choices = [[0.5, 1.0], [1.0, 1.0]] }\n"
    )
    assert read_search(str(path)) == {
        "train.epochs": IntDistribution(2, 6, step=2),
        "train.lr": FloatDistribution(low=1e-3, high=1),
        "train.augment.area": CategoricalDistribution(["[0.5, 1.0]", "[1.0, 1.0]"]),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected a table \[search\]"),
        ("[serach]", "unknown table 'serach'; did you mean search"),
        ("[search]\n=", "not valid TOML"),
        ('[search]\n"train.lr" = { low = 1, hihg = 2 }', "train.lr: unknown key 'hihg'; did you mean high"),
        ('[search]\n"train.lr" = { low = 2, high = 1 }', "train.lr: expected `low` < `high`"),
        ('[search]\n"train.lr" = { low = 0.0, high = 1, log = true }', "train.lr: `low > 0` must hold for `log=True`"),
        ('[search]\n"train.lr" = { low = 1, high = 2, step = 0.5, log = true }', "`step` is not supported when `log`"),
        ('[search]\n"train.lr" = { low = 1.0, high = 2.0, step = 0.0 }', "train.lr: `step > 0` must hold"),
        ('[search]\n"train.lr" = { choices = [] }', "train.lr: give `choices` with at least one value"),
        ('[search]\n"train.lr" = { choices = [1979-05-27] }', "train.lr: .*date is not JSON serializable"),
        ('[search]\n"train.lr" = { low = 1, choices = [1] }', "not both"),
        ('[search]\n"train.lr" = 3', "train.lr: expected a table of keys, got 3"),
        ('[search]\n"train.lr" = { low = 1, high = 2, whole = true }', "unknown key 'whole'"),
    ],
)
def test_a_mistake_in_a_search_file(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_search(str(path))


def test_an_unknown_search_or_pruner():
    with pytest.raises(UsageError, match=r"unknown search .*'finetun'; did you mean finetune"):
        read_search("finetun")
    with pytest.raises(UsageError, match="unknown pruner 'medan'; did you mean median"):
        SweepConfig(pruner="medan")
    with pytest.raises(UsageError, match="--trials must be at least 1"):
        SweepConfig(trials=0)
    with pytest.raises(UsageError, match="--minutes must be positive"):
        SweepConfig(minutes=0)


def test_two_processes_share_a_study_and_a_killed_one_is_made_good(tmp_path):
    """A process is killed in its first trial; two others finish the study together, that trial included."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[[run]]\nname = "lenet"\nmodel = "lenet"\ndata = "digits"\nimages_per_split = 50\n'
        "train = { epochs = 8, batch_size = 10 }\n"
    )
    search = tmp_path / "search.toml"
    search.write_text('[search]\n"train.lr" = { low = 1e-4, high = 1e-2, log = true }\n')
    command = [
        *(sys.executable, "-c", "from zoo.main import main; main()", "sweep", "--recipe", str(recipe)),
        *("--search", str(search), "--trials", "4", "--pruner", "none"),
    ]
    environment = os.environ | {"POCKETZOO_OUTPUT": str(tmp_path / "output"), "OMP_NUM_THREADS": "1"}

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
        )

    killed = begin()
    for line in killed.stderr:
        if "epoch 4/8" in line:
            break
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    both = [begin(), begin()]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    folder = tmp_path / "output" / "sweeps" / "lenet"
    table = rows(folder / "trials.csv")
    assert sum(row["state"] == "complete" for row in table) == 4
    assert [row["trial"] for row in table if row["state"] == "fail"] == ["0"]
    (again,) = [row for row in table[1:] if row["train.lr"] == table[0]["train.lr"]]
    # The kill may come between an epoch's end and its report.
    assert again["state"] == "complete"
    assert int(again["epochs"]) >= 7, "its first epochs were not lost"
    assert "resuming after epoch" in "".join(said)
    ends = [re.findall(r"trial (\d+): validation", text) for text in said]
    assert sorted(int(number) for numbers in ends for number in numbers) == [1, 2, 3, 4]
    assert len({row["train.lr"] for row in table}) == 4
