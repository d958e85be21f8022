"""The experiment on a handful of digits, and its arithmetic."""

from __future__ import annotations

import csv
import dataclasses
import json

import pytest
import torch

from tests.conftest import run_cli
from tests.zoo.factories import TINY_VIT
from zoo.base.errors import ArtefactError, UsageError
from zoo.data.decoded import DecodedImages
from zoo.networks.checkpoint import load, read_card, save
from zoo.studies.forgetting import _saved, forgetting, split_runs, write_forgetting
from zoo.training.evaluate import torch_logits
from zoo.training.loop.fit import FitConfig
from zoo.training.recipe import LoraConfig, Run, load_recipe
from zoo.training.stage import source_of, train

FIRST = Run(
    name="old",
    model="vit_tiny_patch16_224",
    arguments=TINY_VIT,
    data="digits",
    size=32,
    images_per_split=30,
    train=FitConfig(epochs=4, batch_size=10, lr=3e-3),
)
FULL = dataclasses.replace(FIRST, name="full", model="", arguments={}, size=None, data="mnist5k", start="old")
LORA = dataclasses.replace(FULL, name="lora", lora=LoraConfig(targets=("q", "v"), rank=2, alpha=2.0))
HEAD = dataclasses.replace(
    FULL,
    name="head",
    train=FitConfig(epochs=1, batch_size=10, lr=0.5, freeze=dataclasses.replace(FULL.train.freeze, stages=1)),
)


def test_every_network_is_measured_on_both_tasks(output):
    result = forgetting([FIRST, FULL, LORA, HEAD], output, test=True)
    assert (result.old_data, result.new_data) == ("digits", "mnist5k")
    first, full, lora, head = result.rows
    assert [row.run for row in result.rows] == ["old", "full", "lora", "head"]
    assert (first.forgotten, first.saved, first.moved) == (0.0, None, 0.0)
    for row in result.rows:
        metrics = (row.old, row.new, row.old_test, row.new_test)
        assert [(m.dataset, m.split, m.n) for m in metrics] == [
            (name, split, 30) for split in ("validation", "test") for name in ("digits", "mnist5k")
        ]
        assert row.forgotten == pytest.approx(first.old.top1 - row.old.top1)
        assert (
            read_card(output / row.run / "model.safetensors").metrics("validation").top1
            == (row.old if row is first else row.new).top1
        )
        assert read_card(output / row.run / "model.safetensors").metrics("test") is None, "tuned on validation only"
    assert 0 < lora.moved < full.moved
    assert (full.trainable, lora.trainable, head.trainable) == (first.trainable, 2 * 2 * 2 * 96 + 490, 490)
    # The classifier alone was trained, at a rate that throws it about: under the old one, nothing is forgotten.
    assert (head.forgotten, head.moved) == (0.0, 0.0)


def test_what_gentler_ways_save(output):
    rates = {"old": 3e-3, "rough": 0.03, "gentle": 1e-4}
    runs = [
        dataclasses.replace(
            Run(name=name, data="digits", model="lenet", images_per_split=150) if name == "old" else FULL,
            name=name,
            images_per_split=150,
            train=FitConfig(epochs=6, batch_size=10, lr=rate),
        )
        for name, rate in rates.items()
    ]
    old, rough, gentle = forgetting(runs, output).rows
    assert old.old.top1 > 0.8 and rough.forgotten > 0.1
    assert (old.saved, rough.saved) == (None, 0.0)
    assert gentle.saved == pytest.approx(1 - gentle.forgotten / rough.forgotten) and gentle.saved > 0.5
    assert gentle.moved < 0.2 * rough.moved


@pytest.mark.parametrize(
    ("forgotten", "reference", "saved"),
    [(0.1, 0.4, 0.75), (0.4, 0.4, 0.0), (0.0, 0.4, 1.0), (0.6, 0.4, -0.5), (0.1, 0.0, None), (0.1, -0.1, None)],
)
def test_nothing_is_saved_where_nothing_was_forgotten(forgotten, reference, saved):
    assert _saved(forgotten, reference) == (None if saved is None else pytest.approx(saved))


def test_the_old_accuracy_is_that_of_the_old_classifier_on_the_new_features(output):
    row = forgetting([FIRST, FULL], output).rows[1]
    assert row.old_test is None and row.new_test is None
    old, card = load(output / "old" / "model.safetensors")
    new, _ = load(output / "full" / "model.safetensors")
    new.head = old.head
    images = DecodedImages(source_of(FIRST).open().splits["validation"], card.use.input)
    answers = torch.from_numpy(torch_logits(new, images)).argmax(dim=1)
    assert row.old.top1 == pytest.approx((answers == images.labels).double().mean().item())


def test_the_second_call_trains_nothing(output):
    first = forgetting([FIRST, FULL], output)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("model.safetensors")}
    assert forgetting([FIRST, FULL], output) == first and len(times) == 2
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("model.safetensors")}


def test_other_labels_leave_no_answer_of_the_first_network(output, monkeypatch):
    """The old network has no classifier for the new labels."""
    opened = {run.data: source_of(run).open() for run in (FIRST, FULL)}
    opened["mnist5k"] = dataclasses.replace(opened["mnist5k"], labels=tuple("abcdefghij"))
    monkeypatch.setattr("zoo.training.workspace.open_dataset", lambda name, **_: opened[name])
    result = forgetting([FIRST, FULL], output, test=True)
    assert result.rows[0].new is None and result.rows[0].new_test is None
    assert result.rows[1].new is not None and result.rows[0].old_test is not None
    _, table = write_forgetting(result, output / "forgetting", "x")
    assert next(csv.DictReader(table.read_text().splitlines()))["new_top1"] == ""


def test_networks_that_are_not_alike(output):
    train(FIRST, output)
    path = train(FULL, output)
    other = train(dataclasses.replace(FIRST, name="other", arguments=TINY_VIT | {"depth": 1}), output)
    small, card = load(other)
    save(small, dataclasses.replace(card, lineage=read_card(path).lineage), path)
    with pytest.raises(ArtefactError, match=r"full and old: .* only the network with the classifier has 'blocks\.1"):
        forgetting([FIRST, FULL], output)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([FULL], r"one run \(the old task\) has no `start`; 0 of 1 do"),
        ([FIRST, dataclasses.replace(FIRST, name="b")], r"has no `start`; 2 of 2 do"),
        ([FIRST], r"wants runs of a new task that start from 'old'; there are none"),
        ([FIRST, FULL, dataclasses.replace(FULL, name="b", start="full")], r"'b' starts from 'full', expected 'old'"),
        ([FIRST, dataclasses.replace(FULL, data="digits")], r"'full' learns 'digits', which is the old task"),
        ([FIRST, FULL, dataclasses.replace(LORA, images_per_split=9)], r"'lora' and 'full' learn from different data"),
    ],
)
def test_what_is_no_such_experiment(runs, message):
    with pytest.raises(UsageError, match=message):
        split_runs(runs)


def test_files_and_command(output, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        """
        [defaults]
        data = "mnist5k"
        images_per_split = 20
        train = { epochs = 2, batch_size = 5 }
        [[run]]
        name = "a"
        data = "digits"
        model = "lenet"
        [[run]]
        name = "b"
        start = "a"
        [[run]]
        name = "b-l2sp"
        start = "a"
        train.l2sp = 1.0
        """
    )
    told = json.loads(run_cli("forgetting", "--recipe", recipe, "--json").stdout)
    written = output / "forgetting"
    assert json.loads((written / "mine.json").read_text()) == told
    assert [row["run"] for row in told["rows"]] == ["a", "b", "b-l2sp"]
    assert told["rows"][1]["moved"] != told["rows"][2]["moved"], "the penalty acts"
    lines = list(csv.DictReader((written / "mine.csv").read_text().splitlines()))
    assert [(line["run"], line["old_n"], line["old_test_top1"]) for line in lines] == [
        (name, "20", "") for name in ("a", "b", "b-l2sp")
    ]
    assert [float(line["old_top1"]) for line in lines] == [row["old"]["top1"] for row in told["rows"]]
    shown = run_cli("forgetting", "--recipe", recipe, "--test").output
    for part in ("digits (old), then mnist5k (new)", "old test", "forgotten", "b-l2sp", "28,938"):
        assert part in shown
    assert sorted(entry.name for entry in written.iterdir()) == ["mine.csv", "mine.json"]


@pytest.mark.parametrize(
    ("name", "tasks"), [("forgetting", ("digits", "mnist5k")), ("forgetting-pets", ("oxford_pet", "flowers102"))]
)
def test_the_recipes_are_such_experiments(name, tasks):
    first, others = split_runs(load_recipe(name).run)
    assert (first.data, {run.data for run in others}) == (tasks[0], {tasks[1]})
    ways = {(bool(run.lora), bool(run.train.l2sp), run.train.lr) for run in others}
    assert len(others) >= 4 and len(ways) >= 4
    assert others[0].lora is None and others[0].train.l2sp == 0
    assert others[0].train.lr > min(run.train.lr for run in others), "the first of them is the aggressive one"
    assert all(run.role == "control" for run in (first, *others)), "nothing to compress"
