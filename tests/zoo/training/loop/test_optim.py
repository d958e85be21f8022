"""Optimizers and schedules by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import TrainingError, UsageError
from zoo.networks.cutting.truncate import truncate
from zoo.networks.registry import build
from zoo.networks.stages import Stage, stages
from zoo.training.loop.optim import OPTIMIZERS, SCHEDULES, WEIGHT_DECAY, ladder, make_optimizer, make_schedule, plateau


def _net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_a_loss(name):
    assert len(OPTIMIZERS) == 6
    torch.manual_seed(0)
    model = _net()
    optimizer = make_optimizer(name, model, lr=0.01, weight_decay=0.0)
    images, losses = torch.rand(4, 1, 3, 3), []
    for _ in range(20):
        losses.append(nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 0, 1])))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_decay_that_is_not_asked_for_suits_the_optimizer(name):
    groups = make_optimizer(name, _net(), lr=0.1).param_groups
    assert max(group["weight_decay"] for group in groups) == WEIGHT_DECAY[name] <= 0.05
    assert name == "adamw" or WEIGHT_DECAY[name] <= 1e-4


def test_biases_and_norms_are_not_decayed():
    free, decayed = make_optimizer("adamw", _net(), lr=0.1, weight_decay=0.3).param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.3, 0.0)
    assert [p.ndim for p in decayed["params"]] == [4, 2]
    assert [p.ndim for p in free["params"]] == [1, 1, 1, 1]
    assert decayed["lr"] == 0.1


SWIN = {"img_size": 32, "window_size": 2, "depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8}
TABLES = [f"layers.{index}.blocks.0.attn.relative_position_bias_table" for index in range(2)]


@pytest.mark.parametrize(
    ("name", "arguments", "spared"),
    [
        ("resnet10t", {}, []),
        ("vit_tiny_patch16_224", TINY_VIT, ["cls_token", "pos_embed"]),
        ("swin_tiny_patch4_window7_224", SWIN, TABLES),
    ],
)
def test_what_a_network_spares_from_decay(name, arguments, spared):
    model = build(name, classes=3, channels=3, arguments=arguments)
    parameters = dict(model.named_parameters())
    factors = ladder(stages(model), layer_decay=0.5)
    groups = make_optimizer("adamw", model, lr=0.1, weight_decay=0.3, factors=factors).param_groups
    found = {id(p): (group["weight_decay"], group["factor"], group["lr"]) for group in groups for p in group["params"]}
    assert found == {
        id(p): (0.3 if p.ndim > 1 and key not in spared else 0.0, factors[key], 0.1 * factors[key])
        for key, p in parameters.items()
    }
    assert sum(len(group["params"]) for group in groups) == len(parameters)
    assert all(parameters[key].ndim > 1 for key in spared)


def test_what_is_left_of_a_network_spares_the_same():
    model = truncate(build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT), "blocks.0", 3)
    names = {id(p): key.removeprefix("features.network.") for key, p in model.named_parameters()}
    free, _ = make_optimizer("adamw", model, lr=0.1, weight_decay=0.3).param_groups
    assert {names[id(p)] for p in free["params"] if p.ndim > 1} == {"cls_token", "pos_embed"}


def test_frozen_parameters_are_left_out():
    model = _net()
    model[0].requires_grad_(False)
    groups = make_optimizer("sgd", model, lr=0.1, weight_decay=0.3).param_groups
    assert sum(len(group["params"]) for group in groups) == 4
    model.requires_grad_(False)
    with pytest.raises(TrainingError, match="every parameter is frozen; there is nothing to train"):
        make_optimizer("sgd", model, lr=0.1, weight_decay=0.3)


def test_unknown_names():
    with pytest.raises(UsageError, match=r"unknown optimizer 'admaw'; did you mean adamw"):
        make_optimizer("admaw", _net(), lr=0.1, weight_decay=0.0)
    with pytest.raises(UsageError, match=r"unknown schedule 'onecycle'; did you mean one-cycle"):
        make_schedule("onecycle", warmup=0.0)


@pytest.mark.parametrize("warmup", [-0.1, 1.0])
def test_wrong_warmup(warmup):
    with pytest.raises(UsageError, match=r"warmup must be a share of training in \[0, 1\)"):
        make_schedule("cosine", warmup=warmup)


@pytest.mark.parametrize(
    ("name", "warmup", "expected"),
    [
        ("constant", 0.0, {0.0: 1, 0.5: 1, 1.0: 1}),
        ("constant", 0.5, {0.0: 0, 0.25: 0.5, 0.5: 1, 1.0: 1}),
        ("cosine", 0.0, {0.0: 1, 0.5: 0.5, 1.0: 0}),
        ("cosine", 0.2, {0.1: 0.5, 0.2: 1, 0.6: 0.5, 1.0: 0}),
        ("step", 0.0, {0.0: 1, 0.34: 0.1, 0.67: 0.01}),
        ("one-cycle", 0.0, {0.0: 0, 0.1: 0.5, 0.2: 1, 0.6: 0.5, 1.0: 0}),
        ("one-cycle", 0.5, {0.25: 0.5, 0.5: 1, 1.0: 0}),
    ],
)
def test_schedules(name, warmup, expected):
    assert len(SCHEDULES) == 4
    factor = make_schedule(name, warmup=warmup)
    assert {progress: factor(progress) for progress in expected} == pytest.approx(expected)


STAGES = [Stage("stem", ("a",), ()), Stage("body", ("b", "c"), ()), Stage("classifier", ("d",), ())]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"a": 1, "b": 1, "c": 1, "d": 1}),
        ({"head_factor": 10.0}, {"a": 1, "b": 1, "c": 1, "d": 10}),
        ({"layer_decay": 0.5}, {"a": 0.25, "b": 0.5, "c": 0.5, "d": 1}),
        ({"layer_decay": 0.5, "head_factor": 3.0}, {"a": 0.25, "b": 0.5, "c": 0.5, "d": 3}),
        ({"rates": (1.0, 0.3, 0.1)}, {"a": 0.1, "b": 0.3, "c": 0.3, "d": 1}),
        ({"rates": (1.0, 0.3)}, {"a": 0.3, "b": 0.3, "c": 0.3, "d": 1}),
    ],
)
def test_ladders(options, expected):
    assert ladder(STAGES, **options) == pytest.approx(expected)


def test_ladders_exclude_each_other():
    with pytest.raises(UsageError, match=r"train\.rates, or train\.head_factor and train\.layer_decay"):
        ladder(STAGES, rates=(1.0,), head_factor=2.0)
    with pytest.raises(UsageError, match=r"train\.rates must be a positive number, got 0"):
        ladder(STAGES, rates=(1.0, 0.0))


def test_factors_become_groups_with_their_own_rates():
    names = [name for name, _ in _net().named_parameters()]
    factors = {names[-1]: 4.0, names[-2]: 4.0}
    groups = make_optimizer("adamw", _net(), lr=0.1, weight_decay=0.3, factors=factors).param_groups
    assert sorted((group["factor"], round(group["lr"], 6), group["weight_decay"]) for group in groups) == [
        (1.0, 0.1, 0.0),
        (1.0, 0.1, 0.3),
        (4.0, 0.4, 0.0),
        (4.0, 0.4, 0.3),
    ]


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([], 2, 1.0),
        ([3, 2, 1], 1, 1.0),
        ([1, 1], 1, 0.1),
        ([1, 2, 0.5, 0.6], 2, 1.0),
        ([1, 2, 2, 2, 2], 2, 0.01),
        ([1, 2, 2, 0.5, 2, 2], 2, 0.01),
    ],
)
def test_plateau(losses, patience, expected):
    assert plateau(losses, patience=patience) == pytest.approx(expected)
