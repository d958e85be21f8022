"""Giving a fresh network the shapes of a pruned one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import ArtefactError
from zoo.networks.registry import build
from zoo.networks.shrink import Shortcut, attentions, drop_blocks, dropped_blocks, set_heads, shrink


def _net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(8, 4),
        nn.LayerNorm(4),
    )


SMALLER = {
    "0.weight": (5, 3, 3, 3),
    "0.bias": (5,),
    "1.weight": (5,),
    "1.bias": (5,),
    "1.running_mean": (5,),
    "1.running_var": (5,),
    "2.weight": (5, 1, 3, 3),
    "2.bias": (5,),
    "4.weight": (3, 5),
    "4.bias": (3,),
    "5.weight": (3,),
    "5.bias": (3,),
}


def test_layers_agree_with_their_new_tensors():
    model = _net()
    shrink(model, SMALLER, {})
    assert {name: tuple(t.shape) for name, t in model.state_dict().items() if t.ndim} == SMALLER
    assert (model[0].out_channels, model[1].num_features, model[4].in_features, model[4].out_features) == (5, 5, 5, 3)
    assert (model[2].groups, model[2].in_channels, model[2].out_channels) == (5, 5, 5)
    assert model[5].normalized_shape == (3,)
    for tensor in model.state_dict().values():
        tensor.zero_()
    assert model(torch.zeros(2, 3, 5, 5)).shape == (2, 3)
    assert isinstance(model[0].weight, nn.Parameter) and not isinstance(model[1].running_mean, nn.Parameter)


def test_the_same_shapes_change_nothing():
    model = _net()
    before = dict(model.named_parameters())
    shrink(model, {name: tuple(t.shape) for name, t in model.state_dict().items()}, {})
    assert all(after is before[name] for name, after in model.named_parameters())


def test_heads_keep_their_width():
    attention = attentions(build("vit_tiny_patch16_224", classes=2, channels=3, arguments=TINY_VIT))["blocks.0.attn"]
    attention.qkv = nn.Linear(48, 3 * 32)
    set_heads(attention, 2)
    assert (attention.num_heads, attention.head_dim, attention.scale) == (2, 16, 16**-0.5)
    for heads in (0, 5):
        with pytest.raises(ArtefactError, match=f"an attention layer with 96 qkv features cannot have {heads} heads"):
            set_heads(attention, heads)


def test_heads_of_a_network_without_attention():
    with pytest.raises(ArtefactError, match=r"names 'x' as an attention layer, the network has \[\]"):
        shrink(_net(), {}, {"x": 1})


@pytest.mark.parametrize(
    ("whole", "shape", "groups", "channels", "outputs"),
    [
        (nn.Conv2d(16, 24, 1, groups=4), (24, 2, 1, 1), 4, 8, 24),
        (nn.Conv2d(16, 24, 1, groups=4), (12, 1, 1, 1), 4, 4, 12),
        # Narrowed to one channel per group, and then cut again, as the depthwise convolution that it is.
        (nn.Conv2d(16, 24, 1, groups=4), (3, 1, 1, 1), 3, 3, 3),
        (nn.Conv2d(8, 16, 1, groups=8), (8, 1, 1, 1), 8, 8, 8),
        (nn.ConvTranspose2d(8, 6, 1), (4, 5, 1, 1), 1, 4, 5),
    ],
)
def test_groups_are_read_off_the_shape(
    whole: nn.Module, shape: tuple[int, ...], groups: int, channels: int, outputs: int
) -> None:
    model = nn.Sequential(copy.deepcopy(whole))
    shrink(model, {"0.weight": shape, "0.bias": (outputs,)}, {})
    layer = model[0]
    assert (layer.groups, layer.in_channels, layer.out_channels) == (groups, channels, outputs)
    assert layer(torch.zeros(1, channels, 2, 2)).shape == (1, outputs, 2, 2)


def test_a_convolution_that_multiplies_channels_stays_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 1, groups=8), nn.Conv2d(16, 4, 1))
    shrink(model, {"1.weight": (3, 16, 1, 1), "1.bias": (3,)}, {})
    assert model[0].groups == 8
    assert model(torch.zeros(1, 8, 2, 2)).shape == (1, 3, 2, 2)


def test_heads_share_what_is_left_of_their_width() -> None:
    model = build("vit_tiny_patch16_224", classes=2, channels=3, arguments=TINY_VIT)
    name = "blocks.1.attn"
    shapes = {f"{name}.qkv.weight": (3 * 24, 48), f"{name}.qkv.bias": (3 * 24,), f"{name}.proj.weight": (48, 24)}
    shrink(model, shapes, {})
    found = attentions(model)
    assert (found[name].num_heads, found[name].head_dim, found[name].attn_dim) == (3, 8, 24)
    assert found["blocks.0.attn"].head_dim == 16
    shrink(model, shapes, {name: 2})
    assert (found[name].num_heads, found[name].head_dim, found[name].scale) == (2, 12, 12**-0.5)


def test_of_a_dropped_block_the_shortcut_is_left() -> None:
    model = build("vit_tiny_patch16_224", classes=2, channels=3, arguments=TINY_VIT).eval()
    alone = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.blocks[1].parameters():
            parameter.zero_()
    drop_blocks(alone, ["blocks.1"])
    assert (dropped_blocks(alone), dropped_blocks(model)) == (("blocks.1",), ())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(alone(images), model(images))
    features = torch.rand(2, 5)
    assert Shortcut()(features, torch.zeros(1), mask=None) is features
