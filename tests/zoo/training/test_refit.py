"""Refits: the same training on training and validation images together, and what cannot be refitted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.zoo.factories import TINY_VIT, make_card
from tests.zoo.training.loop.test_distributed import torchrun
from zoo.base.errors import ArtefactError, DataError, UsageError
from zoo.base.files import sha256_file
from zoo.networks.checkpoint import load, read_card, save
from zoo.networks.registry import build
from zoo.networks.stages import Freezing
from zoo.training.loop.config import FitConfig
from zoo.training.loop.fit import Stopped
from zoo.training.loop.methods.semi_supervised import Unlabelled
from zoo.training.loop.state import STATE, read_log
from zoo.training.recipe import LoraConfig, Refit, Run
from zoo.training.refit import refit_run
from zoo.training.stage import source_of, train
from zoo.training.workspace import DataSource, read_notes

FIT = FitConfig(epochs=2, batch_size=10)
LENET = Run(name="lenet", model="lenet", data="digits", images_per_split=20, test=False, train=FIT)
VIT = dataclasses.replace(LENET, name="vit", model="vit_tiny_patch16_224", arguments=TINY_VIT, size=32)


def _refit(folder: Path, output: Path) -> Path:
    return train(refit_run(folder), output)


def _same(first: Path, second: Path) -> bool:
    pairs = zip(load(first)[0].state_dict().values(), load(second)[0].state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_same_training_on_all_labelled_images(output, capsys):
    parent = train(dataclasses.replace(LENET, role="control"), output)
    path = _refit(parent.parent, output)
    assert path == output / "lenet-refit" / "model.safetensors"
    said = (
        "lenet-refit: 2 epochs, as lenet was trained; 20 images of train and 20 of validation; the last epoch is kept"
    )
    assert said in capsys.readouterr().err
    before, card = read_card(parent), read_card(path)
    assert (card.name, card.refit_of, before.refit_of) == ("lenet-refit", "lenet", None)
    assert card.inform.metrics == () and card.use.reference is None
    assert card.use.temperature == before.use.temperature != 1
    (entry,), (own,) = card.lineage, before.lineage
    assert entry.config["refit"] == {"of": "lenet", "temperature": card.use.temperature}
    assert entry.config["data"]["n"] == {"train": 40, "test": 20}
    assert entry.config["data"]["rule"].endswith("; 20 images of validation joined the 20 of train")
    assert entry.config["fit"] == own.config["fit"] | {"keep": "last"}
    differing = {"refit", "data", "fit"}
    assert {k: v for k, v in entry.config.items() if k not in differing} == {
        k: v for k, v in own.config.items() if k not in differing
    }
    assert entry.summary.keys() == own.summary.keys() - {"validation_top1"}
    assert (entry.summary["epochs"], entry.summary["best_epoch"]) == (2, 2)
    notes = read_notes(path.parent)
    assert (notes.role, notes.data) == ("control", DataSource(name="digits", per_split=20, joined=True))
    rows = read_log(path.parent / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(row["validation_top1"] != row["validation_top1"] for row in rows), "NaN"


def test_every_image_is_trained_on_and_none_of_the_test(output):
    parent = train(LENET, output)
    plain = source_of(LENET).open()
    run = refit_run(parent.parent)
    digests = [sample.digest for sample in source_of(run).open().splits["train"]]
    assert digests == [sample.digest for split in ("train", "validation") for sample in plain.splits[split]]
    assert not set(digests) & {sample.digest for sample in plain.splits["test"]}
    path = train(run, output)
    before = path.stat().st_mtime_ns
    assert _refit(parent.parent, output) == path
    assert path.stat().st_mtime_ns == before, "up to date"
    train(dataclasses.replace(run, test=True), output)
    assert [(m.split, m.n) for m in read_card(path).inform.metrics] == [("test", 20)]


def test_an_interrupted_refit_ends_with_the_same_bits(output, monkeypatch):
    monkeypatch.setattr("zoo.training.loop.trainer._SAVE_SHARE", 1e9)
    parent = train(LENET, output)
    whole = train(refit_run(parent.parent, output / "whole"), output)
    run = refit_run(parent.parent, output / "part")

    def stop(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, output, on_epoch=stop)
    assert (output / "part" / STATE).is_file()
    epochs = []
    part = train(refit_run(parent.parent, output / "part"), output, on_epoch=lambda result: epochs.append(result.epoch))
    assert epochs == [2]
    assert not (output / "part" / STATE).exists()
    assert _same(whole, part)


def test_adapters_are_trained_and_merged_again(output):
    parent = train(dataclasses.replace(VIT, lora=LoraConfig(rank=2, alpha=4.0)), output)
    card = read_card(_refit(parent.parent, output))
    assert [entry.stage for entry in card.lineage] == ["train", "merge"]
    assert (card.refit_of, card.inform.metrics, card.build.lora) == ("vit", (), None)
    assert card.use.temperature == read_card(parent).use.temperature
    assert read_card(output / "vit-refit" / "lora.safetensors").build.lora.rank == 2


def test_the_settings_of_labels_freezing_and_size_come_back(output):
    fit = dataclasses.replace(FIT, freeze=Freezing(stages=1), ema=0.9)
    parent = train(dataclasses.replace(VIT, labels=0.5, unlabelled=Unlabelled(threshold=0.3), train=fit), output)
    run = refit_run(parent.parent)
    assert (run.labels, run.unlabelled, run.size) == (0.5, Unlabelled(threshold=0.3), 32)
    assert run.train == dataclasses.replace(fit, keep="last")
    assert read_card(train(run, output)).lineage[0].config["data"]["n"] == {"train": 30, "test": 20, "unlabelled": 10}


def test_a_start_is_found_by_its_lineage(output):
    start = train(LENET, output)
    child = train(dataclasses.replace(LENET, name="child", model="", start="lenet"), output)
    train(dataclasses.replace(LENET, test=True), output)
    assert read_card(child).lineage[1].parent != sha256_file(start), "its test accuracy was added since"
    card = read_card(_refit(child.parent, output))
    assert card.lineage[0] == read_card(start).lineage[0]
    assert card.lineage[1].parent == sha256_file(start)
    train(dataclasses.replace(LENET, train=dataclasses.replace(FIT, seed=1)), output)
    with pytest.raises(ArtefactError, match=r"child started from an artefact \(made by train\) that is not, .*again"):
        refit_run(child.parent)


def test_what_ended_early_is_refitted_for_as_long(output, capsys):
    def stop(result):
        if result.epoch == 2:
            raise Stopped

    parent = train(
        dataclasses.replace(LENET, train=dataclasses.replace(FIT, epochs=5, stop_after=3)), output, on_epoch=stop
    )
    run = refit_run(parent.parent)
    assert (run.train.epochs, run.train.keep, run.train.stop_after) == (2, "last", 0)
    assert "2 epochs, after which the training of lenet ended, of 5" in capsys.readouterr().err


def test_a_budget_is_not_planned_anew(output):
    parent = train(dataclasses.replace(LENET, minutes=0.2, train=dataclasses.replace(FIT, batch_size=20)), output)
    run = refit_run(parent.parent)
    assert run.minutes is None and run.train.epochs == read_card(parent).lineage[0].summary["epochs"]
    with pytest.raises(UsageError, match=r"a refit trains for `train\.epochs`; leave `minutes` out"):
        dataclasses.replace(run, minutes=1.0)


def test_weights_of_a_file_are_named_again(output, tmp_path):
    torch.manual_seed(1)
    for name in ("first.pt", "other.pt"):
        torch.save(build("lenet", classes=10, channels=1).state_dict(), tmp_path / name)
    parent = train(dataclasses.replace(LENET, weights=str(tmp_path / "first.pt")), output).parent
    with pytest.raises(UsageError, match=r"weights of a file \(file:first\.pt\), .*--weights FILE"):
        refit_run(parent)
    with pytest.raises(UsageError, match=r"--weights .*other\.pt: lenet began with other weights \(file:first\.pt: "):
        refit_run(parent, weights=str(tmp_path / "other.pt"))
    assert refit_run(parent, weights=str(tmp_path / "first.pt")).weights == str((tmp_path / "first.pt").resolve())


def test_a_trial_of_a_sweep_is_called_by_its_place(output):
    train(dataclasses.replace(LENET, name="trial-3"), output / "sweeps" / "lenet" / "trials")
    run = refit_run(output / "sweeps" / "lenet" / "trials" / "trial-3")
    assert (run.artefact, run.refit.of) == ("sweeps-lenet-trials-trial-3-refit", "sweeps/lenet/trials/trial-3")


def _record(path: Path, key: str, **changes: object) -> None:
    """Change what a card says of its training."""
    model, card = load(path)
    (entry,) = card.lineage
    entry = dataclasses.replace(entry, config={**entry.config, key: entry.config[key] | changes})
    save(model, dataclasses.replace(card, lineage=(entry,)), path)


def _written(output: Path, *stages: str, **config: object) -> Path:
    """A checkpoint whose card says that it was made so."""
    card = make_card(stages=stages)
    lineage = tuple(dataclasses.replace(entry, config=config) for entry in card.lineage)
    card = dataclasses.replace(card, lineage=lineage)
    save(build("lenet", classes=3, channels=3), card, output / "x" / "model.safetensors")
    return output / "x"


@pytest.mark.parametrize(
    ("stages", "config", "reason"),
    [
        ((), {}, r"tiny was not trained \(made by nothing that it records\)"),
        (("import",), {}, r"tiny was not trained \(made by import\).* --set start=tiny`"),
        (
            ("train", "prune", "recover"),
            {},
            "made by train, prune, recover, .*refit the artefact that it was made from",
        ),
        (("train", "export", "quantize"), {}, "made by train, export, quantize, and only a training can be repeated"),
        (("train",), {"method": "probe"}, "fitted by `pocketzoo probe`, not trained; train its classifier"),
        (("train",), {"refit": {"of": "first"}}, "is a refit of first and has no validation images left .*that one"),
    ],
)
def test_what_was_not_trained_last_is_refused(output, stages, config, reason):
    with pytest.raises(ArtefactError, match=reason):
        refit_run(_written(output, *stages, **config))


def test_an_onnx_file_records_no_training(output):
    with pytest.raises(ArtefactError, match=r"model\.int8\.onnx: refit repeats a training.*name .*output/x$"):
        refit_run(output / "x" / "model.int8.onnx")


def test_a_rate_that_follows_validation_is_refused(output):
    parent = train(dataclasses.replace(LENET, train=dataclasses.replace(FIT, schedule="plateau")), output)
    with pytest.raises(UsageError, match=r"schedule = 'plateau' lowers .* \(--set train\.schedule=cosine\)"):
        refit_run(parent.parent)


def test_another_artefact_is_not_written_over(output):
    parent = train(LENET, output).parent
    other = train(dataclasses.replace(LENET, name="lenet-refit"), output)
    before = sha256_file(other)
    with pytest.raises(UsageError, match=r"lenet-refit has another artefact already \(lenet-refit, made by train\)"):
        refit_run(parent)
    assert sha256_file(other) == before
    train(refit_run(parent, output / "all"), output)
    assert refit_run(parent, output / "all").artefact == "all", "a refit of the same"


def test_settings_of_another_version_are_refused(output):
    path = train(LENET, output)
    _record(path, "fit", momentum=0.9)
    with pytest.raises(
        ArtefactError, match=r"train: unknown key 'momentum'; .*another version of pocketzoo trained it"
    ):
        refit_run(path.parent)


def test_data_that_changed_are_refused(output):
    path = train(LENET, output)
    _record(path, "data", digest="0" * 64)
    with pytest.raises(DataError, match="digits has changed since lenet was trained on it"):
        refit_run(path.parent)


def test_a_refit_is_no_start_for_a_training_that_validates_on_the_same_images(output):
    _refit(train(LENET, output).parent, output)
    child = dataclasses.replace(LENET, name="child", model="", start="lenet-refit")
    with pytest.raises(DataError, match="lenet-refit was trained on digits with other images held out"):
        train(child, output)
    train(dataclasses.replace(child, data="mnist5k"), output)


def test_two_processes_refit_as_one(output):
    parent = train(LENET, output).parent
    code = "import sys; from pathlib import Path; from tests.zoo.training import test_refit as t; parent, out = "
    code += "map(Path, sys.argv[1:]); t.train(t.refit_run(parent, out / 'two'), out)"
    done = torchrun(code, parent, output)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = train(refit_run(parent), output), output / "two" / "model.safetensors"
    assert read_card(two).lineage[0].config == read_card(one).lineage[0].config
    pairs = zip(load(one)[0].parameters(), load(two)[0].parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)


def test_a_recipe_can_say_it_too(output):
    run = dataclasses.replace(LENET, name="all", refit=Refit(of="lenet"), train=dataclasses.replace(FIT, keep="last"))
    card = read_card(train(run, output))
    assert (card.refit_of, card.use.temperature, card.inform.metrics) == ("lenet", 1.0, ())
