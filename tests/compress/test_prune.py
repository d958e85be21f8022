"""Tests of compress.prune."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from compress.prune import IMPORTANCES, _least, plan, prune_model
from tests.zoo.factories import TINY_VIT, make_input
from zoo.errors import ArtefactError, UsageError
from zoo.models.registry import build, count_macs
from zoo.models.shrink import attentions
from zoo.recipe import PruneConfig


def vit(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT | changes).eval()


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return build("resnet10t", classes=3, channels=3).eval()


@pytest.mark.parametrize("goal", [0.3, 0.5, 0.8])
def test_plan_reaches_the_goal_and_changes_nothing(goal: float) -> None:
    model, spec = resnet(), make_input(32)
    before = copy.deepcopy(model.state_dict())
    done = plan(model, spec, PruneConfig(macs=goal))
    assert 0.5 * goal < done.ratio <= goal
    assert done.macs_before == count_macs(model, spec)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_plan_is_what_prune_does() -> None:
    model, spec, config = resnet(), make_input(32), PruneConfig(macs=0.5)
    pruned, done = prune_model(model, spec, config)
    assert done == plan(model, spec, config)
    assert count_macs(pruned, spec) == done.macs_after
    for step in done.steps:
        assert pruned.get_submodule(step.layer).weight.shape[0] == step.after < step.before
        assert step.after % 8 == 0


def test_transformers_lose_heads_and_hidden_units_but_no_embedding() -> None:
    model, spec = vit(), make_input(32)
    pruned, done = prune_model(model, spec, PruneConfig(macs=0.6))
    assert {step.unit for step in done.steps} == {"head", "hidden unit"}
    assert pruned.embed_dim == pruned.cls_token.shape[-1] == 48
    for attention in attentions(pruned).values():
        assert attention.num_heads == 2
        assert attention.head_dim == 16
        assert attention.scale == 16**-0.5
        assert attention.qkv.out_features == 3 * 2 * 16


def test_removed_heads_are_the_weakest() -> None:
    model = vit()
    attention = model.blocks[0].attn
    with torch.no_grad():
        for part in range(3):
            attention.qkv.weight[part * 48 + 16 : part * 48 + 32] = 0  # the second of three heads
            attention.qkv.bias[part * 48 + 16 : part * 48 + 32] = 0
        attention.proj.weight[:, 16:32] = 0
    kept_rows = torch.cat([attention.qkv.weight[part * 48 :][:48][[*range(16), *range(32, 48)]] for part in range(3)])
    pruned, _ = prune_model(model, make_input(32), PruneConfig(macs=0.8))
    assert torch.equal(pruned.blocks[0].attn.qkv.weight, kept_rows)


def test_pruning_dead_hidden_units_changes_no_answer() -> None:
    model, spec = vit(depth=1), make_input(32)
    mlp = model.blocks[0].mlp
    dead = 64
    with torch.no_grad():
        mlp.fc1.weight[:dead] = 0
        mlp.fc1.bias[:dead] = 0
        mlp.fc2.weight[:, :dead] = 0
        # As heads go in whole, the smallest goal that keeps all three removes hidden units only.
        for head in model.blocks[0].attn.qkv, model.blocks[0].attn.proj:
            head.weight.mul_(100)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pruned, done = prune_model(model, spec, PruneConfig(macs=0.9))
    (step,) = done.steps
    assert (step.layer, step.unit) == ("blocks.0.mlp.fc1", "hidden unit")
    assert 0 < step.before - step.after <= dead
    with torch.inference_mode():
        assert torch.allclose(pruned(images), model(images), atol=1e-5)


def test_least_rounds_up_and_never_removes_everything() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0, 0.0, 5.0, 4.0])
    assert _least(scores, 0.5, 1) == [1, 2, 3]
    assert _least(scores, 0.5, 4) == [1, 3]
    assert _least(scores, 0.0, 1) == [0, 1, 2, 3, 5]
    assert _least(scores, 1.0, 4) == []


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_prunes_to_the_same_size(importance: str) -> None:
    pruned, done = prune_model(resnet(), make_input(32), PruneConfig(macs=0.5, importance=importance))
    assert done.ratio == plan(resnet(), make_input(32), PruneConfig(macs=0.5)).ratio
    assert torch.isfinite(pruned(torch.zeros(1, 3, 32, 32))).all()


def test_random_importance_is_seeded() -> None:
    first, again, other = (
        prune_model(resnet(), make_input(32), PruneConfig(importance="random", seed=seed))[0].state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_impossible_goals_and_unknown_names() -> None:
    spec = make_input(32)
    with pytest.raises(UsageError, match=r"out of reach; raise prune.macs or lower prune.round_to \(64\)"):
        plan(resnet(), spec, PruneConfig(macs=0.01, round_to=64))
    with pytest.raises(UsageError, match=r"in \(0, 1\); got 1.5"):
        PruneConfig(macs=1.5)
    with pytest.raises(UsageError, match="did you mean l2"):
        plan(resnet(), spec, PruneConfig(importance="l22"))


def test_grouped_convolutions_are_refused_by_name() -> None:
    model = build("resnext26ts", classes=3, channels=3)
    with pytest.raises(ArtefactError, match="is a grouped convolution"):
        plan(model, make_input(32), PruneConfig())


def test_a_coupling_the_graph_misses_is_refused() -> None:
    class Padded(nn.Module):
        """A shortcut that pads channels with zeros, which torch-pruning's graph does not see."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3, padding=1)
            self.second = nn.Conv2d(16, 32, 3, padding=1)
            self.head = nn.Linear(32, 3)

        def get_classifier(self) -> nn.Module:
            return self.head

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.first(images)
            padded = nn.functional.pad(features, (0, 0, 0, 0, 8, 8))
            return self.head((self.second(features) + padded).mean((2, 3)))

    with pytest.raises(ArtefactError, match="cannot be pruned"):
        prune_model(Padded(), make_input(32), PruneConfig(round_to=1))
