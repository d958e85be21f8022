"""Attention probabilities against a softmax by hand, for fused and unfused networks of every kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import ArtefactError
from zoo.explain.inside.attention_maps import attend, attention_maps, to_grid, tokens_of
from zoo.networks.cutting.truncate import truncate
from zoo.networks.lora import add_lora, merge_lora
from zoo.networks.registry import build
from zoo.networks.shrink import set_heads

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2}
ROTARY = SMALL | {"num_heads": 3}


def _build(name: str = "vit_tiny_patch16_224", arguments: dict[str, Any] | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = build(name, classes=3, channels=3, arguments=TINY_VIT if arguments is None else arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _images(count: int = 2, size: tuple[int, int] = (32, 32)) -> torch.Tensor:
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(1))


def _by_hand(model: nn.Module, images: torch.Tensor, block: int) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) of a block in NumPy, from its weights and its input tokens."""
    seen: list[torch.Tensor] = []
    attention = model.blocks[block].attn
    handle = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    tokens = seen[0].double().numpy()  # [B, N, D]
    weight, bias = (tensor.detach().double().numpy() for tensor in (attention.qkv.weight, attention.qkv.bias))
    heads = attention.num_heads
    width = weight.shape[0] // 3 // heads
    maps = np.zeros((len(tokens), heads, tokens.shape[1], tokens.shape[1]))
    for image in range(len(tokens)):
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            query = tokens[image] @ weight[rows].T + bias[rows]
            keys = slice((heads + head) * width, (heads + head + 1) * width)
            key = tokens[image] @ weight[keys].T + bias[keys]
            query, key = (_normed(norm, part) for norm, part in ((attention.q_norm, query), (attention.k_norm, key)))
            scores = np.exp(query @ key.T / np.sqrt(width))
            maps[image, head] = scores / scores.sum(axis=-1, keepdims=True)
    return maps


def _normed(norm: nn.Module, part: np.ndarray) -> np.ndarray:
    if isinstance(norm, nn.Identity):
        return part
    weight, bias = (tensor.detach().double().numpy() for tensor in (norm.weight, norm.bias))
    centred = part - part.mean(axis=-1, keepdims=True)
    return centred / np.sqrt(part.var(axis=-1, keepdims=True) + norm.eps) * weight + bias


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_maps_are_the_softmax_by_hand(fused: bool, normed: bool) -> None:
    model, images = _build(arguments=TINY_VIT | {"qk_norm": normed}), _images()
    for block in model.blocks:
        block.attn.fused_attn = fused
    maps = attention_maps(model, images)
    assert [tuple(heads.shape) for heads in maps] == [(2, 3, 17, 17)] * 2
    for block, heads in enumerate(maps):
        np.testing.assert_allclose(heads.numpy(), _by_hand(model, images, block), rtol=0, atol=2e-6)
        np.testing.assert_allclose(heads.sum(dim=-1).numpy(), 1.0, atol=1e-5)
        assert heads.std() > 0.01
    assert [block.attn.fused_attn for block in model.blocks] == [fused] * 2


def test_a_pruned_network_has_its_own_heads() -> None:
    # As pruning leaves it: two heads of 10 dimensions each, then one of 16.
    model, images = _build(), _images()
    for block, (heads, width) in zip(model.blocks, [(2, 10), (1, 16)], strict=True):
        block.attn.qkv = nn.Linear(48, 3 * heads * width)
        block.attn.proj = nn.Linear(heads * width, 48)
        set_heads(block.attn, heads)
    maps = attention_maps(model, images)
    assert [heads.shape[1] for heads in maps] == [2, 1]
    for block, heads in enumerate(maps):
        np.testing.assert_allclose(heads.numpy(), _by_hand(model, images, block), rtol=0, atol=2e-6)


def test_adapters_attend_as_their_merged_network() -> None:
    model, images = _build(), _images()
    before = attention_maps(model, images)
    add_lora(model, targets=["q", "v"], rank=2, alpha=4)
    for module in model.modules():
        if hasattr(module, "lora_b"):
            nn.init.normal_(module.lora_b)
    beside = attention_maps(model.eval(), images)
    merge_lora(model)
    merged = attention_maps(model.eval(), images)
    for old, found, wanted in zip(before, beside, merged, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=0, atol=1e-5)
        assert (found - old).abs().max() > 1e-3


KINDS = {
    "class token": ("vit_tiny_patch16_224", TINY_VIT, 1, "class token"),
    "registers": ("vit_tiny_patch16_224", TINY_VIT | {"reg_tokens": 4}, 5, "class token"),
    "pooled": ("vit_tiny_patch16_224", TINY_VIT | {"global_pool": "avg"}, 1, "mean over patches"),
    "no class token": (
        "vit_tiny_patch16_224",
        TINY_VIT | {"global_pool": "avg", "class_token": False},
        0,
        "mean over patches",
    ),
    "attention pooling": ("vit_tiny_patch16_224", TINY_VIT | {"global_pool": "map"}, 1, "mean over patches"),
    "distilled": ("deit_tiny_distilled_patch16_224", TINY_VIT, 2, "class and distillation token"),
    "beit": ("beit_base_patch16_224", SMALL | {"num_heads": 3}, 1, "mean over patches"),
    "eva": ("eva02_tiny_patch14_224", ROTARY, 1, "mean over patches"),
    "dinov3": ("vit_small_patch16_dinov3", ROTARY, 5, "mean over patches"),
    "relative positions": ("vit_relpos_small_patch16_224", ROTARY, 0, "mean over patches"),
    "parallel": ("vit_tiny_patch16_224", TINY_VIT | {"block_fn": "ParallelScalingBlock"}, 1, "class token"),
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_answers_as_before(kind: str, fused: bool) -> None:
    name, arguments, prefix, read = KINDS[kind]
    if "block_fn" in arguments:
        from timm.models import vision_transformer

        arguments = arguments | {"block_fn": vision_transformer.ParallelScalingBlock}
    model, images = _build(name, arguments), _images()
    flagged = [module for module in model.modules() if hasattr(module, "fused_attn")]
    for module in flagged:
        module.fused_attn = fused
    with torch.no_grad():
        wanted = model(images)
        attended = attend(model, images)
    assert (attended.logits - wanted).abs().max() <= 1e-6 * max(1.0, float(wanted.abs().max()))
    assert [module.fused_attn for module in flagged] == [fused] * len(flagged)
    assert len(attended.maps) == 2
    tokens = tokens_of(model, attended.maps[0].shape[-1], (32, 32))
    assert (tokens.prefix, tokens.grid, tokens.read) == (prefix, (4, 4), read)
    for heads in attended.maps:
        assert heads.shape[0] == 2 and heads.shape[-1] == prefix + 16
        np.testing.assert_allclose(heads.sum(dim=-1).numpy(), 1.0, atol=1e-5)
        assert to_grid(heads, tokens).shape == (2, heads.shape[1], 4, 4)


def test_maps_of_a_shortened_network() -> None:
    model = truncate(_build(), "blocks.0", 3).eval()
    (heads,) = attention_maps(model, _images())
    tokens = tokens_of(model, heads.shape[-1], (32, 32))
    assert (tokens.prefix, tokens.grid, tokens.readers, tokens.read) == (1, (4, 4), (0,), "class token")


def test_a_grid_is_as_wide_as_the_picture() -> None:
    model = _build(arguments=TINY_VIT | {"img_size": (16, 40)})
    (first, _) = attention_maps(model, _images(1, (16, 40)))
    assert tokens_of(model, first.shape[-1], (16, 40)).grid == (2, 5)


def test_to_grid_takes_the_readers_rows_and_the_patches_columns() -> None:
    model = _build("deit_tiny_distilled_patch16_224")
    tokens = tokens_of(model, 18, (32, 32))
    relevance = torch.zeros(18, 18)
    relevance[0, 2 + 6], relevance[1, 2 + 6], relevance[5, 2 + 7], relevance[0, 1] = 1.0, 3.0, 9.0, 9.0
    grid = to_grid(relevance, tokens)
    assert grid[1, 2] == 2.0 and grid.sum() == 2.0
    pooled = tokens_of(_build(arguments=TINY_VIT | {"global_pool": "avg", "class_token": False}), 16, (32, 32))
    assert torch.equal(to_grid(torch.eye(16), pooled), torch.full((4, 4), 1 / 16))


def test_the_network_gets_everything_back() -> None:
    model = _build(arguments=TINY_VIT | {"attn_drop_rate": 0.5, "drop_path_rate": 0.5}).train()
    model.blocks[1].eval()
    model.blocks[1].attn.fused_attn = False
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    maps = attention_maps(model, _images())
    assert all(torch.equal(a, b) for a, b in zip(maps, attention_maps(model, _images()), strict=True))
    assert [module.training for module in model.modules()] == modes
    assert [block.attn.fused_attn for block in model.blocks] == [True, False]
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_failing_network_gets_everything_back_too() -> None:
    model = _build().train()
    with pytest.raises(AssertionError, match="Input height"):
        attention_maps(model, _images(1, (40, 40)))
    assert model.training and model.blocks[1].training
    assert [block.attn.fused_attn for block in model.blocks] == [True, True]
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("lenet", {}, "LeNet has no attention among all patches.* found no attention; `pocketzoo explain gradcam`"),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "depths": [1, 1], "embed_dim": 24, "num_heads": [1, 2], "window_size": 4},
            "SwinTransformer has no attention.* looked for timm's Attention, .* found WindowAttention;",
        ),
        (
            "xcit_nano_12_p16_224",
            {"img_size": 32, "depth": 1},
            "Xcit has no attention among all patches",
        ),
        ("pit_ti_224", {}, "PoolingVisionTransformer cuts the image differently from block to block"),
    ],
)
def test_other_networks_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    model = build(name, classes=3, channels=3, arguments=arguments).eval()
    size = (224, 224) if name == "pit_ti_224" else (32, 32)
    with pytest.raises(ArtefactError, match=message):
        attention_maps(model, _images(1, size))


def test_parallel_attention_is_refused() -> None:
    from timm.models.vision_transformer import ParallelThingsBlock

    model = _build(arguments=TINY_VIT | {"block_fn": ParallelThingsBlock})
    with pytest.raises(ArtefactError, match="several attention layers side by side"):
        attention_maps(model, _images(1))


def test_tokens_that_make_no_grid_are_refused() -> None:
    with pytest.raises(ArtefactError, match="has 15 tokens, expected those of 4 x 4 patches"):
        tokens_of(_build(), 15, (32, 32))
    with pytest.raises(ArtefactError, match="its 7 tokens make no grid over 32 x 32 pixels"):
        tokens_of(nn.Identity(), 7, (32, 32))
    assert tokens_of(nn.Identity(), 8, (16, 32)).grid == (2, 4)
