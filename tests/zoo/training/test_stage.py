"""Training as a stage, on a handful of digits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.zoo.factories import TINY_VIT
from tests.zoo.training.loop.test_distributed import torchrun
from zoo.base.errors import ArtefactError, DataError, UsageError
from zoo.base.files import sha256_file
from zoo.data.splits import Thin
from zoo.networks.checkpoint import load, read_card, save
from zoo.networks.lora import has_lora
from zoo.networks.registry import count_macs
from zoo.training.loop.fit import FitConfig
from zoo.training.loop.methods.semi_supervised import Unlabelled
from zoo.training.recipe import LoraConfig, Run
from zoo.training.stage import measured, merge, source_of, train
from zoo.training.workspace import DataSource, read_notes

ONE_EPOCH = FitConfig(epochs=1, batch_size=10, lr=1e-3)
LENET = Run(name="lenet", model="lenet", data="digits", images_per_split=20, train=ONE_EPOCH)
VIT = Run(
    name="vit",
    model="vit_tiny_patch16_224",
    arguments=TINY_VIT,
    data="digits",
    size=32,
    images_per_split=20,
    lora=LoraConfig(rank=2, alpha=4.0),
    train=ONE_EPOCH,
)


def _files(folder: Path) -> dict[str, tuple[str, int]]:
    """Name -> digest and time of change."""
    return {path.name: (sha256_file(path), path.stat().st_mtime_ns) for path in folder.glob("*.safetensors")}


def test_a_checkpoint_with_a_complete_card(output):
    path = train(LENET, output)
    assert path == output / "lenet" / "model.safetensors"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["log.csv", "model.safetensors", "run.json"]
    card = read_card(path)
    assert (card.name, card.build.architecture, card.use.labels) == ("lenet", "lenet", tuple("0123456789"))
    assert card.use.input.shape == (1, 28, 28)
    assert (card.inform.parameters, card.inform.bytes, card.inform.macs) == (28_938, 4 * 28_938, 2_838_080)
    assert (card.inform.source, card.inform.licence, card.inform.precision) == ("random", None, "float32")
    assert [(m.split, m.n) for m in card.inform.metrics] == [("validation", 20), ("test", 20)]
    assert all(m.dataset == "digits" for m in card.inform.metrics)
    assert all(m.low <= m.top1 <= m.high and m.top5 is not None for m in card.inform.metrics)
    assert sum(card.use.reference.histogram.values()) == 20 and card.use.golden is None
    (entry,) = card.lineage
    assert (entry.stage, entry.parent, entry.seed) == ("train", None, 0)
    assert entry.config["data"]["n"] == {"train": 20, "validation": 20, "test": 20}
    assert entry.config["fit"]["epochs"] == 1
    assert (entry.summary["best_epoch"], entry.summary["trainable"]) == (1, 28_938)
    notes = read_notes(path.parent)
    assert (notes.role, notes.data, notes.test) == ("model", DataSource(name="digits", per_split=20), notes.data)


def test_the_second_call_does_nothing_unless_forced_or_changed(output):
    folder = train(LENET, output).parent
    before = _files(folder)
    train(LENET, output)
    assert _files(folder) == before
    train(LENET, output, force=True)
    assert _files(folder)["model.safetensors"][1] > before["model.safetensors"][1]
    train(dataclasses.replace(LENET, train=dataclasses.replace(ONE_EPOCH, lr=2e-3)), output)
    assert read_card(folder / "model.safetensors").lineage[0].config["fit"]["lr"] == 2e-3


def test_lora_leaves_the_adapters_and_the_merged_network(output):
    path = train(VIT, output)
    folder = path.parent
    assert set(_files(folder)) == {"lora.safetensors", "model.safetensors"}
    separate, card = load(folder / "lora.safetensors")
    assert has_lora(separate) and card.build.lora.rank == 2
    assert [entry.stage for entry in card.lineage] == ["train"]
    assert card.lineage[0].summary["trainable"] < card.inform.parameters
    merged, card = load(path)
    assert not has_lora(merged) and card.build.lora is None
    assert [entry.stage for entry in card.lineage] == ["train", "merge"]
    assert card.lineage[1].parent == sha256_file(folder / "lora.safetensors")
    assert card.lineage[1].summary == {"adapters": 8}
    assert card.inform.macs == count_macs(merged, card.use.input)
    assert [m.split for m in card.inform.metrics] == ["validation", "test"]
    before = _files(folder)
    train(VIT, output)
    assert _files(folder) == before


def test_a_run_starts_from_another(output):
    plain = dataclasses.replace(VIT, lora=None)
    parent = train(plain, output)
    path = train(dataclasses.replace(VIT, name="adapted", start="vit"), output)
    card = read_card(path)
    assert [entry.stage for entry in card.lineage] == ["train", "train", "merge"]
    assert card.lineage[1].parent == sha256_file(parent)
    assert (card.name, read_card(parent).name) == ("adapted", "vit")
    before = _files(path.parent)
    train(dataclasses.replace(plain, train=dataclasses.replace(ONE_EPOCH, seed=1)), output)
    train(dataclasses.replace(VIT, name="adapted", start="vit"), output)
    assert all(_files(path.parent)[name] != before[name] for name in before), "another parent, another child"


def test_a_start_that_held_out_other_images_is_refused(output):
    parent = train(LENET, output)
    child = dataclasses.replace(LENET, name="child", model="", start="lenet")
    train(child, output)
    train(dataclasses.replace(child, labels=0.5), output)
    train(dataclasses.replace(child, thin=Thin(classes=("1",), keep=0.5)), output)
    other = dataclasses.replace(child, images_per_split=30)
    with pytest.raises(DataError, match=r"lenet was trained on digits with other images held out, .* same split_seed"):
        train(other, output)
    train(dataclasses.replace(other, data="mnist5k"), output)
    train(dataclasses.replace(child, name="grandchild", start="child"), output)
    # A card from before this was recorded.
    model, card = load(parent)
    data = {key: value for key, value in card.lineage[0].config["data"].items() if key != "held_out"}
    entry = dataclasses.replace(card.lineage[0], config=card.lineage[0].config | {"data": data})
    save(model, dataclasses.replace(card, lineage=(entry,)), parent)
    train(other, output)


def test_a_start_is_compared_where_it_last_saw_the_same_data(output):
    train(LENET, output)
    between = dataclasses.replace(LENET, name="between", model="", start="lenet", data="mnist5k")
    train(between, output)
    last = dataclasses.replace(between, name="last", start="between", data="digits")
    train(last, output)
    with pytest.raises(DataError, match="between was trained on digits with other images held out"):
        train(dataclasses.replace(last, images_per_split=30), output)


def test_the_test_split_is_read_later_if_it_is_wanted_later(output):
    for run in (LENET, VIT):
        path = train(dataclasses.replace(run, test=False), output)
        first, card = load(path)
        assert [m.split for m in card.inform.metrics] == ["validation"]
        assert train(run, output) == path
        again, measured_card = load(path)
        assert measured_card.lineage == card.lineage
        assert [m.split for m in measured_card.inform.metrics] == ["validation", "test"]
        assert measured_card.metrics("validation") == card.metrics("validation")
        state = again.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())
        before = _files(path.parent)
        train(run, output)
        train(run, output, test=False)
        assert _files(path.parent) == before


def test_few_labels_that_leave_no_image_without_one(output):
    run = dataclasses.replace(LENET, labels=0.99, unlabelled=Unlabelled())
    with pytest.raises(UsageError, match=r"labels = 0\.99 leaves none of the 20 training images of digits without"):
        train(run, output)


def test_other_labels_get_a_new_head(output):
    parent = train(dataclasses.replace(VIT, lora=None), output)
    model, card = load(parent)
    model.reset_classifier(3)
    use = dataclasses.replace(card.use, labels=("a", "b", "c"), reference=None)
    save(model, dataclasses.replace(card, use=use), parent)
    network, card = load(train(dataclasses.replace(VIT, name="again", lora=None, start="vit"), output))
    assert len(card.use.labels) == network.head.out_features == 10
    assert card.inform.macs == count_macs(network, card.use.input)


def test_a_missing_start(output):
    with pytest.raises(ArtefactError, match=r"lenet starts from gone, but there is no .*gone.*train that first"):
        train(dataclasses.replace(LENET, start="gone"), output)


def test_merging_what_has_no_adapters(output):
    path = train(LENET, output)
    with pytest.raises(ArtefactError, match="there are no LoRA adapters to merge"):
        merge(path, output / "merged.safetensors")


def test_an_interrupted_run_is_resumed(output, monkeypatch):
    import zoo.training.stage as module

    two = dataclasses.replace(LENET, train=dataclasses.replace(ONE_EPOCH, epochs=2))
    train(two, output / "whole")
    fit = module.fit
    stop = KeyboardInterrupt()

    def interrupted(*args, **options):
        fit(*args, **options)
        raise stop

    monkeypatch.setattr(module, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(two, output)
    assert (output / "lenet" / "state.pt").exists() and not (output / "lenet" / "model.safetensors").exists()
    monkeypatch.setattr(module, "fit", fit)
    ours, theirs = (load(train(two, folder))[0].state_dict() for folder in (output, output / "whole"))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert not (output / "lenet" / "state.pt").exists()


def test_two_processes_write_each_checkpoint_once_with_all_that_is_measured(output):
    code = "import sys; from pathlib import Path; from tests.zoo.training import test_stage as t\n"
    code += "for test in (False, True): t.train(t.VIT, Path(sys.argv[1]), test=test)"
    done = torchrun(code, output)
    assert done.returncode == 0, done.stderr[-3000:]
    path = output / "vit" / "model.safetensors"
    model, card = load(path)
    assert [(m.split, m.n) for m in card.inform.metrics] == [("validation", 20), ("test", 20)]
    again = measured(
        model,
        dataclasses.replace(card, inform=dataclasses.replace(card.inform, metrics=())),
        source_of(VIT).open(),
        test=True,
    )
    assert [m.top1 for m in again.inform.metrics] == [m.top1 for m in card.inform.metrics]
