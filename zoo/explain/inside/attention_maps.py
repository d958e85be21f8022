"""Who looks at whom: the attention probabilities of vision transformers, taken from a forward pass.

Letters in shapes: B images, C channels, H and W pixels, N tokens (prefix tokens first, then the patches row by row),
K labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.layers import Attention, AttentionRope
from timm.models import beit, deit, eva, vision_transformer, vision_transformer_relpos
from torch import nn

from zoo.base.errors import ArtefactError
from zoo.networks.cutting.truncate import Truncated

__all__ = ["Attended", "Tokens", "attend", "attention_layers", "attention_maps", "to_grid", "tokens_of"]

_KINDS = (
    Attention,
    AttentionRope,
    beit.Attention,
    eva.EvaAttention,
    vision_transformer.ParallelScalingBlock,
    vision_transformer_relpos.RelPosAttention,
)
"""timm's modules that hand softmax(q k^T / sqrt(d)) over all tokens to their `attn_drop`, unless they are fused.

Other modules of that name attend to channels, to windows or to fewer keys, or mix the heads after the softmax.
"""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What the tokens of a network stand for."""

    prefix: int
    """Number of tokens before those of the patches: class, distillation and register tokens."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    readers: tuple[int, ...]
    """The tokens whose last state the classifier reads."""
    read: str
    """The same in words."""


@dataclass(frozen=True, kw_only=True)
class Attended:
    """A forward pass with the attention of every block."""

    logits: torch.Tensor
    """float [B, K]"""
    maps: list[torch.Tensor]
    """A block's probabilities [B, heads, N, N], from the token in the third axis to the one in the last; rows sum
    to 1. In the order in which the blocks are run."""


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules in which every token of an image attends to every other one: name -> module.

    Raises:
        ArtefactError: there is none, or several read the same tokens side by side.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, _KINDS)}
    if any(isinstance(module, vision_transformer.ParallelThingsBlock) for module in model.modules()):
        raise ArtefactError(
            f"{_kind(model)} has several attention layers side by side in each block, whose maps have no order to "
            "be rolled out in; `pocketzoo explain gradcam` shows where it looks"
        )
    if not found:
        others = sorted({type(m).__name__ for m in model.modules() if "attention" in type(m).__name__.lower()})
        wanted = ", ".join(sorted({kind.__name__ for kind in _KINDS}))
        raise ArtefactError(
            f"{_kind(model)} has no attention among all patches of an image: looked for timm's {wanted}, "
            f"found {', '.join(others) or 'no attention'}; `pocketzoo explain gradcam` shows where such a network looks"
        )
    return found


def attention_maps(model: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """The attention probabilities of every block, in the order in which they are run.

    Args:
        model: a network of timm's vision transformers; stays as it is.
        inputs: preprocessed images, float [B, C, H, W].

    Returns:
        Tensors [B, heads, N, N] without a graph.

    Raises:
        ArtefactError: see :func:`attend`.
    """
    with torch.no_grad():
        return attend(model, inputs).maps


def attend(model: nn.Module, inputs: torch.Tensor) -> Attended:
    """Run a network in evaluation mode and keep what its blocks attend to.

    PyTorch's fused attention never makes these probabilities, so timm's own form of the same computation is run; the
    network has its settings back afterwards, also where it fails. The maps belong to the graph of the logits, so that
    torch.autograd.grad gives derivatives by them.

    Args:
        model: see :func:`attention_maps`.
        inputs: float [B, C, H, W].

    Raises:
        ArtefactError: see :func:`attention_layers`; or the blocks see windows, or different numbers of tokens.
    """
    with _watched(model) as maps:
        logits: torch.Tensor = model(inputs)
    _check(model, maps, len(inputs))
    return Attended(logits=logits, maps=maps)


def tokens_of(model: nn.Module, count: int, size: tuple[int, int]) -> Tokens:
    """What each of a network's tokens stands for.

    Args:
        model: whose :func:`attention_maps` were taken.
        count: N, the number of its tokens.
        size: H and W of its input.

    Raises:
        ArtefactError: the tokens do not make a grid of patches.
    """
    rows, columns = _grid(model, count, size)
    prefix = count - rows * columns
    patches = tuple(range(prefix, count))
    pool = model.features.pool if isinstance(model, Truncated) else getattr(model, "global_pool", "")
    has_class = _class_token(model) and prefix > 0
    readers: tuple[int, ...]
    if isinstance(model, deit.VisionTransformerDistilled):
        readers, read = (0, 1), "class and distillation token"
    elif has_class and pool in ("token", "class token", "prr"):
        readers, read = (0,), "class token"
    elif getattr(model, "pool_include_prefix", False):
        readers, read = tuple(range(count)), "mean over tokens"
    else:
        readers, read = patches, "mean over patches"
    return Tokens(prefix=prefix, grid=(rows, columns), readers=readers, read=read)


def to_grid(relevance: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """How much the tokens that the classifier reads draw on each patch: [..., N, N] to [..., rows, columns].

    Where it reads several tokens, that is their mean; prefix tokens are left out of the map.
    """
    drawn = relevance[..., list(tokens.readers), :].mean(dim=-2)  # [..., N]
    return drawn[..., tokens.prefix :].reshape(*drawn.shape[:-1], *tokens.grid)


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    layers = attention_layers(model).values()
    training = {module: module.training for module in model.modules()}
    fused = {layer: layer.fused_attn for layer in layers}
    maps: list[torch.Tensor] = []
    handles = [_drop(layer).register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0])) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.fused_attn = False  # type: ignore[assignment]
        yield maps
    finally:
        for handle in handles:
            handle.remove()
        for layer, flag in fused.items():
            layer.fused_attn = flag
        for module, mode in training.items():
            module.training = mode


def _drop(layer: nn.Module) -> nn.Module:
    drop = layer.attn_drop
    assert isinstance(drop, nn.Module)
    return drop


def _check(model: nn.Module, maps: list[torch.Tensor], images: int) -> None:
    shapes = {tuple(found.shape[2:]) for found in maps}
    blocks = len(attention_layers(model))
    if len(maps) != blocks:
        raise ArtefactError(
            f"{_kind(model)} runs {len(maps)} of its {blocks} attention layers, expected each of them once; "
            "`pocketzoo explain gradcam` shows where it looks"
        )
    if len(shapes) > 1 or any(found.shape[0] != images for found in maps):
        seen = ", ".join(sorted({f"{found.shape[0] // images} x {found.shape[-1]} tokens" for found in maps}))
        raise ArtefactError(
            f"{_kind(model)} cuts the image differently from block to block (groups of {seen}), so its attention is "
            "not one map of the image; `pocketzoo explain gradcam` shows where it looks"
        )


def _grid(model: nn.Module, count: int, size: tuple[int, int]) -> tuple[int, int]:
    embeddings = [module for module in model.modules() if hasattr(module, "dynamic_feat_size")]
    if embeddings:
        rows, columns = (int(edge) for edge in embeddings[0].dynamic_feat_size(size))  # type: ignore[operator]
    else:
        # An embedding that does not say: square patches.
        patches = count - int(getattr(model, "num_prefix_tokens", 0))
        rows = max(1, round(math.sqrt(patches * size[0] / size[1])))
        columns = patches // rows
        if rows * columns != patches:
            raise ArtefactError(f"{_kind(model)}: its {patches} tokens make no grid over {size[0]} x {size[1]} pixels")
    if not 0 < rows * columns <= count:
        raise ArtefactError(f"{_kind(model)} has {count} tokens, expected those of {rows} x {columns} patches")
    return rows, columns


def _class_token(model: nn.Module) -> bool:
    if isinstance(model, Truncated):
        return model.features.pool == "class token"
    return any(isinstance(getattr(model, name, None), nn.Parameter) for name in ("cls_token", "cls"))


def _kind(model: nn.Module) -> str:
    return type(model).__name__
