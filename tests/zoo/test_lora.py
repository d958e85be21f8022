"""Adapters: what they freeze, where they start, and their exact merge."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.card import Lora
from zoo.errors import ArtefactError, UsageError
from zoo.lora import LoraLinear, add_card_lora, add_lora, has_lora, merge_lora
from zoo.models.registry import build

TARGETS = ("qkv", "proj", "fc1", "fc2")
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _vit() -> nn.Module:
    torch.manual_seed(0)
    return build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT).eval()


def _randomise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(module.lora_b, std=0.05)


def test_every_target_of_every_block_is_wrapped():
    model = _vit()
    wrapped = add_lora(model, targets=TARGETS, rank=2, alpha=4.0)
    places = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert wrapped == [f"blocks.{block}.{place}" for block in (0, 1) for place in places]
    qkv = model.blocks[0].attn.qkv
    assert isinstance(qkv, LoraLinear) and has_lora(model)
    assert (qkv.lora_a.shape, qkv.lora_b.shape, qkv.scaling) == ((2, 48), (144, 2), 2.0)


def test_only_adapters_and_classifier_are_trainable():
    model = _vit()
    add_lora(model, targets=TARGETS, rank=2, alpha=4.0)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in name or name.startswith("head.") for name in trainable)
    # (48 + 144), (48 + 48), 2 x (48 + 192), each times rank 2, in two blocks; and the classifier
    expected = 2 * 2 * (192 + 96 + 2 * 240) + 48 * 3 + 3
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_training_moves_nothing_else():
    model = _vit().train()
    add_lora(model, targets=["qkv"], rank=2, alpha=4.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        nn.functional.cross_entropy(model(IMAGES), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    adapters = {f"blocks.{block}.attn.qkv.lora_{part}" for block in (0, 1) for part in "ab"}
    assert changed == adapters | {"head.weight", "head.bias"}


@torch.no_grad()
def test_step_zero_is_the_unadapted_network():
    model = _vit()
    before = model(IMAGES)
    add_lora(model, targets=TARGETS, rank=8, alpha=16.0)
    assert torch.equal(model(IMAGES), before)


@settings(max_examples=15)
@given(st.integers(1, 16), st.floats(0.1, 32), st.sets(st.sampled_from(TARGETS), min_size=1), st.integers(0, 99))
@torch.no_grad()
def test_merging_is_exact(rank, alpha, targets, seed):
    model = _vit()
    names = list(model.state_dict())
    plain = model(IMAGES)
    torch.manual_seed(seed)
    count = len(add_lora(model, targets=sorted(targets), rank=rank, alpha=alpha))
    _randomise(model)
    before = model(IMAGES)
    assert not torch.equal(before, plain)
    assert merge_lora(model) == count == 2 * len(targets)
    after = model(IMAGES)
    # Relative to the size of the logits, which grows with alpha / rank.
    assert (after - before).abs().max() <= 1e-5 * max(1.0, before.abs().max().item())
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert list(model.state_dict()) == names and not has_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("bias", [True, False])
def test_merged_weight_is_the_papers_formula(bias):
    torch.manual_seed(0)
    layer = LoraLinear(nn.Linear(5, 4, bias=bias), rank=2, alpha=6.0)
    nn.init.normal_(layer.lora_b)
    merged = layer.merged()
    torch.testing.assert_close(merged.weight, layer.base.weight + 3.0 * layer.lora_b @ layer.lora_a)
    assert (merged.bias is None) is not bias


def test_a_card_describes_the_same_adapters():
    ours, cards = _vit(), _vit()
    add_lora(ours, targets=["fc1"], rank=3, alpha=4.0)
    add_card_lora(cards, Lora(targets=("fc1",), rank=3, alpha=4.0))
    shapes = [[(name, tensor.shape) for name, tensor in model.state_dict().items()] for model in (ours, cards)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("targets", "rank", "message"),
    [
        (["qvk"], 2, r"LoRA target 'qvk' matches no linear layer; the network has: fc1, fc2, proj, qkv"),
        (["qkv", "head"], 2, r"LoRA target 'head' matches no linear layer"),
        ([], 2, r"LoRA needs at least one target layer"),
        (["qkv"], 0, r"LoRA's rank must be at least 1, got 0"),
    ],
)
def test_what_is_refused(targets, rank, message):
    model = _vit()
    with pytest.raises(UsageError, match=message):
        add_lora(model, targets=targets, rank=rank, alpha=1.0)
    assert not has_lora(model) and all(p.requires_grad for p in model.parameters())


def test_a_network_without_linear_layers():
    with pytest.raises(UsageError, match="matches no linear layer; the network has: none"):
        add_lora(build("lenet", classes=2, channels=1), targets=["qkv"], rank=1, alpha=1.0)


def test_nothing_to_merge():
    with pytest.raises(ArtefactError, match="no LoRA adapters to merge"):
        merge_lora(_vit())
