"""A training that ends within so many minutes."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo.training.stage as stage
from zoo.base.errors import UsageError
from zoo.data.catalogue import open_dataset
from zoo.networks.checkpoint import load, read_card
from zoo.training.budget import PLAN, identity_of, plan, read_plan, settle
from zoo.training.loop.config import FitConfig
from zoo.training.loop.fit import Pace
from zoo.training.recipe import Run
from zoo.training.stage import train

LENET = Run(
    name="lenet",
    model="lenet",
    data="digits",
    images_per_split=20,
    train=FitConfig(epochs=1, batch_size=10),
    minutes=1.0,
)
PACE = Pace(once=2.0, epoch=5.0, validation=1.0)


@pytest.mark.parametrize(("minutes", "epochs"), [(1.0, 9), (0.5, 3), (0.25, 1)])
def test_as_many_epochs_as_end_in_time(minutes: float, epochs: int) -> None:
    settled = plan(minutes, PACE, identity="x", spent=3.0, measuring=4.0)
    assert settled.epochs == epochs
    assert settled.planned_seconds == 9.0 + 5.0 * epochs <= 60 * minutes


def test_too_little_time_says_how_much_it_takes() -> None:
    with pytest.raises(
        UsageError, match=r"--minutes 0\.2 is too little: an epoch takes about 5\.0 s .* least 0\.3 min"
    ):
        plan(0.2, PACE, identity="x", spent=3.0, measuring=4.0)
    assert plan(0.3, PACE, identity="x", spent=3.0, measuring=4.0).epochs == 1


@pytest.mark.parametrize("minutes", [0.0, -1.0, float("nan"), float("inf")])
def test_minutes_that_are_none(minutes: float) -> None:
    with pytest.raises(UsageError, match=r"minutes \(--minutes\) must be a positive number"):
        dataclasses.replace(LENET, minutes=minutes)


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each measurement of the pace is counted and gives epochs of 14 seconds: three fit into a minute."""
    calls: list[int] = []

    def measure_pace(*_: Any, **__: Any) -> Pace:
        calls.append(1)
        return Pace(once=0.0, epoch=14.0, validation=0.0)

    monkeypatch.setattr(stage, "measure_pace", measure_pace)
    return calls


def _entry(path: Path) -> Any:
    return read_card(path).lineage[-1]


def test_test_images_take_time_only_where_they_are_read() -> None:
    dataset = open_dataset("digits", per_split=20)
    slow = Pace(once=2.0, epoch=5.0, validation=20.0)
    with_test, without = (
        settle(LENET, dataset, slow, identity="x", begun=time.perf_counter(), decoding=0.0, test=test).epochs
        for test in (True, False)
    )
    assert without - with_test == 3  # in 20 seconds, a tenth of which is kept


def test_what_was_planned_stands_in_the_lineage(output: Path, paced: list[int]) -> None:
    path = train(LENET, output)
    entry = _entry(path)
    assert (entry.config["minutes"], entry.config["fit"]["epochs"], entry.summary["epochs"]) == (1.0, 3, 3)
    assert entry.summary["epoch_seconds"] == 14.0
    assert 42 <= entry.summary["planned_seconds"] <= 60
    assert not (path.parent / PLAN).exists()
    before = path.read_bytes()
    train(LENET, output)
    assert (len(paced), path.read_bytes()) == (1, before), "it is up to date"
    train(dataclasses.replace(LENET, train=dataclasses.replace(LENET.train, lr=2e-3)), output)
    assert len(paced) == 2, "another training has another pace"


def test_the_weights_are_those_of_so_many_epochs(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle = stage.settle
    monkeypatch.setattr(stage, "settle", lambda *a, **k: dataclasses.replace(settle(*a, **k), epochs=2))
    ours = train(LENET, output)
    assert _entry(ours).summary["epochs"] == 2
    two = dataclasses.replace(LENET, name="two", minutes=None, train=dataclasses.replace(LENET.train, epochs=2))
    theirs = load(train(two, output))[0].state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in load(ours)[0].state_dict().items())
    assert "minutes" not in _entry(output / "two" / "model.safetensors").config


def test_an_interrupted_run_keeps_its_plan(output: Path, paced: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    fit, stop = stage.fit, KeyboardInterrupt()

    def interrupted(*args: Any, **options: Any) -> None:
        fit(*args, **options)
        raise stop

    monkeypatch.setattr(stage, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(LENET, output)
    monkeypatch.setattr(stage, "fit", fit)
    assert (output / "lenet" / PLAN).is_file()
    assert _entry(train(LENET, output)).config["fit"]["epochs"] == 3
    assert len(paced) == 1


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"epochs": 3}'])
def test_a_plan_that_cannot_be_read_is_made_again(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PLAN).write_bytes(content)
    assert read_plan(tmp_path, "x") is None


def test_the_number_of_epochs_does_not_make_another_run() -> None:
    config = {"model": "lenet", "fit": {"epochs": 3, "lr": 0.1}}
    assert identity_of(config, None) == identity_of({**config, "fit": {"epochs": 5, "lr": 0.1}}, None)
    assert identity_of(config, None) != identity_of({**config, "fit": {"epochs": 3, "lr": 0.2}}, None)
    assert identity_of(config, None) != identity_of(config, "aa")
