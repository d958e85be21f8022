"""From the attention of single blocks to what an answer draws on: attention rollout, and gradient-weighted attention.

Letters in shapes: B images, C channels, H and W pixels, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from zoo.base.errors import UsageError, unknown_name
from zoo.explain.inside.attention_maps import attend

__all__ = ["FUSIONS", "gradient_weighted", "rollout"]

FUSIONS = ("max", "mean", "min")
"""How the heads of a block can become one map."""


def rollout(maps: Sequence[torch.Tensor], *, fusion: str = "mean") -> torch.Tensor:
    """Attention rollout: how much each last token draws on each first one, if attention passed all information on.

    Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers" (arXiv 2005.00928), section 3: A = 0.5 W +
    0.5 I for the residual connection, its rows made to sum to 1, and the product of the blocks' A, the last leftmost.

    Args:
        maps: [B, heads, N, N] of each block, the first block first.
        fusion: `mean` of the heads as in the paper, or their `max` or `min`.

    Returns:
        [B, N, N], rows sum to 1.

    Raises:
        UsageError: no maps, or an unknown fusion.
    """
    if fusion not in FUSIONS:
        raise unknown_name("fusion of heads", fusion, FUSIONS)
    if not maps:
        raise UsageError("rollout needs the maps of at least one block, got none")
    result = _identity(maps[0])
    for heads in maps:
        mixed = 0.5 * _fused(heads, fusion) + 0.5 * _identity(heads)  # [B, N, N]
        result = mixed / mixed.sum(dim=-1, keepdim=True) @ result
    return result


def gradient_weighted(model: nn.Module, inputs: torch.Tensor, label: int) -> torch.Tensor:
    """Relevance of every token for one label, by attention and the gradient of the label's logit.

    Chefer, Gur and Wolf 2021, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers" (arXiv 2103.15679), the rules for self-attention: A' = mean over heads of the positive part of
    (dy / dA) * A (equation 5), and R <- R + A' R from R = I on (equation 6).

    Args:
        model: see :func:`zoo.explain.inside.attention_maps.attention_maps`; neither it nor its gradients are changed.
        inputs: preprocessed images, float [B, C, H, W].
        label: index of the label that is explained, of every image.

    Returns:
        R: [B, N, N] without a graph.

    Raises:
        UsageError: the network has no such label.
        ArtefactError: see :func:`zoo.explain.inside.attention_maps.attend`.
    """
    with torch.enable_grad():
        # Weights may be frozen; with images that want gradients there is a graph all the same.
        attended = attend(model, inputs.detach().clone().requires_grad_(True))
        labels = attended.logits.shape[1]
        if not 0 <= label < labels:
            raise UsageError(f"label {label} is not one of the network's {labels}, 0 to {labels - 1}")
        gradients = torch.autograd.grad(attended.logits[:, label].sum(), attended.maps)
    result = _identity(attended.maps[0])
    for heads, gradient in zip(attended.maps, gradients, strict=True):
        relevant = (gradient * heads.detach()).clamp(min=0).mean(dim=1)  # [B, N, N]
        result = result + relevant @ result
    return result


def _fused(heads: torch.Tensor, fusion: str) -> torch.Tensor:
    """[B, heads, N, N] to [B, N, N]."""
    return heads.mean(dim=1) if fusion == "mean" else heads.amax(dim=1) if fusion == "max" else heads.amin(dim=1)


def _identity(heads: torch.Tensor) -> torch.Tensor:
    """[B, heads, N, N] to the unit matrix of each image: [B, N, N]."""
    count = heads.shape[-1]
    return torch.eye(count, dtype=heads.dtype, device=heads.device).expand(len(heads), count, count)
