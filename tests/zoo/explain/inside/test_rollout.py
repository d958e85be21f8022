"""Attention rollout and gradient-weighted attention, against loops over NumPy arrays and finite differences."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import UsageError
from zoo.explain.inside.attention_maps import attend, attention_maps
from zoo.explain.inside.rollout import gradient_weighted, rollout
from zoo.networks.registry import build

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3), st.integers(1, 6), st.integers(0, 2**31))


def _vit() -> nn.Module:
    torch.manual_seed(0)
    model = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def _images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _maps(blocks: int, images: int, heads: int, tokens: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (images, heads, tokens, tokens)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).softmax(dim=-1) for _ in range(blocks)]


@pytest.mark.parametrize(("fusion", "reduce"), [("mean", np.mean), ("max", np.max), ("min", np.min)])
def test_rollout_is_the_papers_product(fusion: str, reduce: np.ufunc) -> None:
    maps = _maps(3, 2, 4, 5, seed=7)
    found = rollout(maps, fusion=fusion).numpy()
    for image in range(2):
        product = np.eye(5)
        for heads in maps:
            fused = reduce(heads[image].numpy(), axis=0)
            mixed = np.zeros((5, 5))
            for row in range(5):
                for column in range(5):
                    mixed[row, column] = 0.5 * fused[row, column] + (0.5 if row == column else 0.0)
                mixed[row] /= mixed[row].sum()
            product = np.matmul(mixed, product)
        np.testing.assert_allclose(found[image], product, rtol=0, atol=1e-14)


@settings(max_examples=40)
@given(shape=SHAPES, fusion=st.sampled_from(["mean", "max", "min"]))
def test_rows_of_rollout_sum_to_one(shape: tuple[int, int, int, int, int], fusion: str) -> None:
    found = rollout(_maps(*shape), fusion=fusion)
    assert found.min() >= 0
    np.testing.assert_allclose(found.sum(dim=-1).numpy(), 1.0, atol=1e-12)


@settings(max_examples=20)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_the_order_of_heads_does_not_matter(shape: tuple[int, int, int, int, int], seed: int) -> None:
    maps = _maps(*shape)
    order = torch.randperm(maps[0].shape[1], generator=torch.Generator().manual_seed(seed))
    np.testing.assert_allclose(
        rollout(maps).numpy(), rollout([heads[:, order] for heads in maps]).numpy(), rtol=0, atol=1e-13
    )


def test_attention_to_oneself_passes_nothing_on() -> None:
    identity = torch.eye(4, dtype=torch.float64).expand(1, 2, 4, 4)
    assert torch.equal(rollout([identity, identity])[0], torch.eye(4, dtype=torch.float64))


def test_later_blocks_stand_on_the_left() -> None:
    # The first block hands token 2 to token 1, the second one token 1 to token 0: then 0 knows of 2, not the reverse.
    first, second = torch.eye(3)[[0, 2, 2]], torch.eye(3)[[1, 1, 2]]
    forwards = rollout([first[None, None], second[None, None]])[0]
    backwards = rollout([second[None, None], first[None, None]])[0]
    assert forwards[0].tolist() == [0.5, 0.25, 0.25]
    assert backwards[0].tolist() == [0.5, 0.5, 0.0]


def test_rollout_refuses() -> None:
    with pytest.raises(UsageError, match="unknown fusion of heads 'maen'; did you mean mean"):
        rollout(_maps(1, 1, 1, 2, 0), fusion="maen")
    with pytest.raises(UsageError, match="at least one block"):
        rollout([])


def test_gradient_weighted_is_the_papers_rule_with_gradients_by_finite_differences() -> None:
    model, images = _vit(), _images(1)
    maps = [heads.clone() for heads in attention_maps(model, images)]
    label, step = 1, 1e-5
    relevance = np.eye(17)
    for block, heads in enumerate(maps):
        # Finite differences at a few places vouch for the rest, which would take 1,734 forward passes a block.
        gradient = _by_autograd_on_own_formula(model, images, block, label)
        for place in [(0, 0, 3), (1, 5, 0), (2, 16, 16), (0, 0, 0), (2, 0, 9)]:
            above, below = (_logit(model, images, block, place, sign * step, label) for sign in (1, -1))
            assert (above - below) / (2 * step) == pytest.approx(float(gradient[place]), rel=1e-5, abs=1e-9)
        relevant = np.maximum(gradient.numpy() * heads[0].numpy(), 0).mean(axis=0)
        relevance = relevance + relevant @ relevance
    found = gradient_weighted(model, images, label)
    np.testing.assert_allclose(found[0].numpy(), relevance, rtol=0, atol=1e-12)


def _changed(model: nn.Module, images: torch.Tensor, block: int, change: torch.Tensor) -> torch.Tensor:
    """The logits where `change` is added to a block's probabilities, by a forward pass of its own."""
    attention = model.blocks[block].attn
    ours = copy.deepcopy(attention)

    def forward(x: torch.Tensor, **_: object) -> torch.Tensor:
        images, tokens, _width = x.shape
        qkv = ours.qkv(x).reshape(images, tokens, 3, ours.num_heads, ours.head_dim).permute(2, 0, 3, 1, 4)
        scores = torch.einsum("bhqd,bhkd->bhqk", qkv[0], qkv[1]) / ours.head_dim**0.5
        mixed = torch.einsum("bhqk,bhkd->bqhd", scores.softmax(dim=-1) + change, qkv[2])
        return ours.proj(mixed.flatten(2))

    twin = copy.deepcopy(model)
    twin.blocks[block].attn.forward = forward
    return twin(images)


def _logit(
    model: nn.Module, images: torch.Tensor, block: int, place: tuple[int, int, int], step: float, label: int
) -> float:
    change = torch.zeros(3, 17, 17, dtype=torch.float64)
    change[place] = step
    with torch.no_grad():
        return float(_changed(model, images, block, change)[0, label])


def _by_autograd_on_own_formula(model: nn.Module, images: torch.Tensor, block: int, label: int) -> torch.Tensor:
    change = torch.zeros(3, 17, 17, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(_changed(model, images, block, change)[0, label], change)
    return gradient


def test_each_image_has_its_own_relevance() -> None:
    model, images = _vit(), _images(2)
    together = gradient_weighted(model, images, 2)
    for number in range(2):
        alone = gradient_weighted(model, images[number : number + 1], 2)
        np.testing.assert_allclose(together[number].numpy(), alone[0].numpy(), rtol=0, atol=1e-12)
    assert not torch.allclose(together, gradient_weighted(model, images, 0))


def test_relevance_is_never_negative_and_starts_from_oneself() -> None:
    found = gradient_weighted(_vit(), _images(), 0)
    assert found.min() >= 0
    assert (found.diagonal(dim1=-2, dim2=-1) >= 1).all()


def test_a_label_without_evidence_has_none() -> None:
    model = _vit()
    with torch.no_grad():
        model.head.weight[1] = 0
    assert torch.equal(gradient_weighted(model, _images(1), 1)[0], torch.eye(17, dtype=torch.float64))


def test_no_gradients_are_left_behind() -> None:
    model, images = _vit(), _images()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
    with torch.no_grad():
        found = gradient_weighted(model, images, 0)
    assert not found.requires_grad and not images.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()][:2] == [True, False]


def test_frozen_weights_have_relevance_too() -> None:
    model, images = _vit(), _images()
    wanted = gradient_weighted(model, images, 0)
    assert torch.equal(gradient_weighted(model.requires_grad_(False), images, 0), wanted)


@pytest.mark.parametrize("label", [-1, 3])
def test_an_unknown_label_is_refused(label: int) -> None:
    with pytest.raises(UsageError, match=f"label {label} is not one of the network's 3, 0 to 2"):
        gradient_weighted(_vit(), _images(1), label)


def test_maps_keep_their_graph_where_one_is_recorded() -> None:
    attended = attend(_vit(), _images(1).requires_grad_())
    assert all(heads.requires_grad for heads in attended.maps)
    assert not any(heads.requires_grad for heads in attention_maps(_vit(), _images(1)))
