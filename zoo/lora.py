"""LoRA: low-rank adapters beside frozen linear layers, and their exact merge.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1:
y = W x + b + (alpha / rank) B A x, with A [rank, in] drawn at random and B [out, rank] zero, so that training starts
from the unadapted network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from zoo.card import Lora
from zoo.errors import ArtefactError, UsageError
from zoo.models.registry import classifier

__all__ = ["LoraLinear", "add_card_lora", "add_lora", "has_lora", "merge_lora"]


class LoraLinear(nn.Module):
    """A frozen linear layer with a trainable low-rank correction: [..., in] to [..., out]."""

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scaling = alpha / rank
        self.dropout = nn.Dropout(dropout)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))  # [rank, in]
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))  # [out, rank]
        # As microsoft/LoRA does it; the paper says "random Gaussian".
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        low: torch.Tensor = nn.functional.linear(self.dropout(inputs), self.lora_a)
        output: torch.Tensor = self.base(inputs)
        return output + nn.functional.linear(low, self.lora_b) * self.scaling

    def merged(self) -> nn.Linear:
        """A plain linear layer with the weight W + (alpha / rank) B A, computed in float64."""
        base = self.base
        correction = self.lora_b.double() @ self.lora_a.double() * self.scaling
        linear = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(base.weight.double() + correction)
            if base.bias is not None:
                linear.bias.copy_(base.bias)
        return linear.to(base.weight.device)


def add_lora(model: nn.Module, *, targets: Sequence[str], rank: int, alpha: float, dropout: float = 0.0) -> list[str]:
    """Wrap every linear layer whose name ends in one of `targets`; freeze all but the adapters and the classifier.

    Args:
        model: changed in place. timm's fused `qkv` is one layer and gets one adapter.
        targets: last parts of layer names, like ("qkv", "proj", "fc1", "fc2").
        rank: rank of the correction.
        alpha: numerator of its scale alpha / rank.
        dropout: applied to the adapters' input.

    Returns:
        The names of the wrapped layers.

    Raises:
        UsageError: a target that names no linear layer, or a rank below 1.
    """
    if rank < 1:
        raise UsageError(f"LoRA's rank must be at least 1, got {rank}")
    head = set(classifier(model).modules())
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m not in head}
    chosen = {name: m for name, m in linear.items() if name.rsplit(".", 1)[-1] in targets}
    matched = {name.rsplit(".", 1)[-1] for name in chosen}
    if unmatched := sorted(set(targets) - matched):
        present = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UsageError(
            f"LoRA target {unmatched[0]!r} matches no linear layer; the network has: {', '.join(present) or 'none'}"
        )
    if not chosen:
        raise UsageError("LoRA needs at least one target layer")
    model.requires_grad_(False)
    for name, module in chosen.items():
        _replace(model, name, LoraLinear(module, rank=rank, alpha=alpha, dropout=dropout))
    classifier(model).requires_grad_(True)
    return list(chosen)


def add_card_lora(model: nn.Module, lora: Lora) -> None:
    """Add the adapters that a card describes (their weights are loaded afterwards)."""
    add_lora(model, targets=lora.targets, rank=lora.rank, alpha=lora.alpha)


def has_lora(model: nn.Module) -> bool:
    """Whether any adapter is not merged yet."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


def merge_lora(model: nn.Module) -> int:
    """Replace every adapter by one plain linear layer that computes the same, in place.

    Returns:
        How many adapters were merged.

    Raises:
        ArtefactError: there are none.
    """
    adapters = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLinear)]
    if not adapters:
        raise ArtefactError("the network has no LoRA adapters to merge")
    for name, module in adapters:
        _replace(model, name, module.merged())
    model.requires_grad_(True)
    return len(adapters)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
