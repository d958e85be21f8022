"""Advice changes with the data and with the weights, and its recipes are trained as they are."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch

from tests.zoo.factories import TINY_VIT
from zoo.artefact.card import Metrics
from zoo.base.errors import DataError
from zoo.data.augment.pipeline import Augment
from zoo.data.catalogue import open_dataset
from zoo.data.dataset import Dataset
from zoo.studies.advise import Facts, advise, decide, measure, recipe_of
from zoo.training.loop.fit import FitConfig
from zoo.training.recipe import Run, load_recipe
from zoo.training.stage import starting_point, train

RUN = Run(model="resnet10t", data="digits", size=32, weights="pretrained")
"""`weights` says only that they are not random; the networks are given."""


@pytest.fixture(scope="module")
def trained_weights(tmp_path_factory) -> str:
    """A resnet10t that knows real handwritten digits, MNIST's."""
    run = Run(
        name="mnist",
        model="resnet10t",
        data="mnist5k",
        size=32,
        images_per_split=600,
        # Varied, so that what it learned of digits holds for others', on every processor.
        train=FitConfig(epochs=4, lr=1e-3, batch_size=20, augment=Augment(area=(0.8, 1.6), rotate=10, aspect=1.2)),
    )
    return str(train(run, tmp_path_factory.mktemp("advise")))


def network(weights: str):
    dataset = open_dataset("digits")
    model, card = starting_point(dataclasses.replace(RUN, weights=weights), dataset, None)
    return model.eval(), card.use.input


def with_random_labels(dataset: Dataset) -> Dataset:
    draw = random.Random(0)
    splits = {
        split: [dataclasses.replace(sample, label=draw.randrange(10)) for sample in samples]
        for split, samples in dataset.splits.items()
    }
    return dataclasses.replace(dataset, splits=splits)


def test_many_images_few_images_random_labels_and_random_weights(trained_weights):
    model, spec = network(trained_weights)
    many, few = open_dataset("digits"), open_dataset("digits", per_split=100)
    facts, found = advise(many, model, spec, RUN)
    assert (found.size, found.similarity, found.strategy) == ("large", "similar", "full")
    assert facts.images == len(many.splits["train"])
    assert facts.features > facts.pixels.top1
    assert found.warnings == ()
    assert (found.run.weights, found.run.train.layer_decay) == ("pretrained", 0.75)

    facts, found = advise(few, model, spec, RUN)
    assert (found.size, found.similarity, found.strategy) == ("small", "similar", "head")
    assert found.run.train.freeze.stages == 1

    facts, found = advise(with_random_labels(few), model, spec, RUN)
    assert (found.size, found.similarity, found.strategy) == ("small", "unrelated", "last-stages")
    assert found.run.train.freeze.norm == "freeze"
    assert found.warnings[0].startswith("nothing beats answering the most frequent class")
    assert advise(with_random_labels(many), model, spec, RUN)[1].strategy == "scratch"

    untrained, _ = network("none")
    facts, found = advise(many, untrained, spec, RUN)
    assert (found.similarity, found.strategy, found.run.weights) == ("unrelated", "scratch", "none")
    assert facts.features < facts.pixels.top1
    assert "add" in found.reasons[2]
    found = advise(few, untrained, spec, dataclasses.replace(RUN, weights="none"))[1]
    assert found.strategy == "scratch"
    assert "the first weights are random" in found.reasons[-1]


def test_measured_facts(trained_weights):
    model, spec = network(trained_weights)
    few = open_dataset("digits", per_split=100)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    facts = measure(few, model, spec, random_weights=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert (facts.images, facts.per_class, facts.imbalance) == (100, (10, 10, 10), 1.0)
    assert facts.chance == 0.1
    assert [entry.n for entry in (facts.pixels, facts.neighbours, facts.probe)] == [100] * 3
    assert (facts.stages, facts.transformer, facts.photographs) == (6, False, False)
    alone = dataclasses.replace(few, splits=few.splits | {"validation": few.splits["validation"][:1]})
    with pytest.raises(DataError, match="all validation images are of one class"):
        measure(alone, model, spec, random_weights=False)


def test_imbalance_is_measured_and_weighted(trained_weights):
    model, spec = network(trained_weights)
    few = open_dataset("digits", per_split=100)
    kept = [sample for index, sample in enumerate(few.splits["train"]) if sample.label != 3 or index < 20]
    skewed = dataclasses.replace(few, splits=few.splits | {"train": kept})
    facts, found = advise(skewed, model, spec, RUN)
    assert facts.per_class[0] < facts.per_class[2] / 3
    assert found.run.train.class_weights == "balanced"
    assert found.warnings[0].startswith("imbalance: the most frequent class has 5.0 times")
    assert advise(few, model, spec, RUN)[1].run.train.class_weights == "none"


def metrics(top1: float) -> Metrics:
    return Metrics(dataset="x", split="validation", n=100, top1=top1, low=top1 - 0.05, high=top1 + 0.05)


def facts_of(**changes) -> Facts:
    """Many images of two classes, similar to the pretraining; a ResNet."""
    fields = {
        "images": 5000,
        "per_class": (2500, 2500, 2500),
        "chance": 0.5,
        "pixels": metrics(0.6),
        "neighbours": metrics(0.9),
        "probe": metrics(0.95),
        "parameters": 11_000_000,
        "stages": 6,
        "transformer": False,
        "random_weights": False,
        "photographs": True,
    }
    return Facts(**(fields | changes))


SMALL = {"images": 500}
DIFFERENT = {"probe": metrics(0.8), "neighbours": metrics(0.7)}
UNRELATED = {"probe": metrics(0.62), "neighbours": metrics(0.6)}
VIT = {"transformer": True}


@pytest.mark.parametrize(
    ("changes", "strategy"),
    [
        ({}, "full"),
        (SMALL, "head"),
        ({"per_class": (9, 9, 9)}, "head"),
        (DIFFERENT, "full"),
        (SMALL | DIFFERENT, "last-stages"),
        (UNRELATED, "scratch"),
        (SMALL | UNRELATED, "last-stages"),
        (VIT, "full"),
        (VIT | {"parameters": 86_000_000}, "lora"),
        (VIT | DIFFERENT | {"parameters": 86_000_000}, "full"),
        (VIT | SMALL, "head"),
        (VIT | SMALL | DIFFERENT, "lora"),
        (SMALL | {"random_weights": True}, "scratch"),
        ({"pixels": metrics(0.945)}, "scratch"),
        ({"pixels": metrics(0.9)}, "full"),
    ],
)
def test_the_table(changes, strategy):
    found = decide(facts_of(**changes), Run(model="m", data="digits", weights="pretrained"))
    assert found.strategy == strategy
    assert found.run.artefact == f"digits-m-{strategy}"
    assert (found.run.lora is not None) == (strategy == "lora")
    assert found.reasons[-1].startswith(f"{strategy}: ")
    assert len(found.reasons) == 4


@pytest.mark.parametrize(
    ("model", "arguments", "strategy"),
    [("coatnet_pico_rw_224", {"img_size": 32}, "last-stages"), ("vit_tiny_patch16_224", TINY_VIT, "lora")],
)
def test_lora_is_advised_where_its_targets_are_linear_layers(model, arguments, strategy):
    few = open_dataset("digits", per_split=20)
    run = Run(model=model, arguments=arguments, data="digits", size=32)
    network, card = starting_point(run, few, None)
    assert any(layer.endswith("attn.qkv") for layer, _ in network.named_modules())
    facts = measure(few, network.eval(), card.use.input, random_weights=False)
    advised = decide(facts_of(**SMALL, **DIFFERENT, transformer=facts.transformer), run)
    assert advised.strategy == strategy
    starting_point(dataclasses.replace(advised.run, weights="none"), few, None)


def test_every_reason_has_its_numbers():
    reasons = " ".join(decide(facts_of(**SMALL), RUN).reasons)
    for number in ("500 training images", "chance is 50.0% on 100", "60.0% in pixels", "90.0% in frozen", "95.0%"):
        assert number in reasons
    assert "remove 87% of" in reasons
    assert "goes 90% of the way" in reasons


@pytest.mark.parametrize("changes", [{}, SMALL, SMALL | DIFFERENT, UNRELATED, VIT | SMALL | DIFFERENT])
def test_the_recipe_is_the_advised_run(changes, tmp_path):
    run = Run(model="vit_tiny_patch16_224", arguments=TINY_VIT, data="digits", size=32, weights="pretrained")
    facts = facts_of(**changes)
    found = decide(facts, run)
    path = tmp_path / "advice.toml"
    path.write_bytes(recipe_of(found, facts, command=f"pocketzoo train --recipe {path}"))
    (again,) = load_recipe(str(path)).run
    assert again == dataclasses.replace(found.run, arguments=again.arguments)
    assert dict(again.arguments) == TINY_VIT
    assert f"# Command:    pocketzoo train --recipe {path}" in path.read_text()


@pytest.mark.parametrize("changes", [{}, SMALL, SMALL | DIFFERENT, UNRELATED, VIT | SMALL | DIFFERENT])
def test_the_recipe_can_be_trained(changes, tmp_path):
    run = Run(
        model="vit_tiny_patch16_224", arguments=TINY_VIT, data="digits", size=32, images_per_split=20, weights="none"
    )
    facts = facts_of(photographs=False, stages=4, **changes)
    found = decide(facts, run)
    path = tmp_path / "advice.toml"
    path.write_bytes(recipe_of(found, facts, command="none"))
    (advised,) = load_recipe(str(path), settings=["train.epochs=1"]).run
    assert train(advised, tmp_path).parent.name == f"digits-vit_tiny_patch16_224-{found.strategy}"
