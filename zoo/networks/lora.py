"""LoRA: low-rank adapters beside frozen linear layers, and their exact merge.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), section 4.1:
y = W x + b + (alpha / rank) B A x, with A [rank, in] drawn at random and B [out, rank] zero, so that training starts
from the unadapted network. rsLoRA divides by sqrt(rank) instead: Kalajdzievski 2023 (arXiv 2312.03732).

A fused attention layer `qkv` computes query, key and value in one: its rows are q, then k, then v. It gets either one
adapter for all its rows (target `qkv`), or one of its own for each of the targets `q`, `k`, `v`, as if they were three
layers; `S` is how many of these.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Sequence

import torch
from torch import nn

from zoo.artefact.card import Lora
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.registry import classifier
from zoo.networks.transplant import classifier_tensors

__all__ = ["LoraLinear", "adaptable", "adapter_state", "add_card_lora", "add_lora", "has_lora", "merge_lora"]

_SLICES = ("q", "k", "v")
"""Thirds of a fused layer's rows, in their order: timm reshapes its output to [B, N, 3, heads, head_dim]."""


class LoraLinear(nn.Module):
    """A frozen linear layer with a trainable low-rank correction: [..., in] to [..., out]."""

    def __init__(
        self,
        base: nn.Linear,
        *,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        slices: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scaling = alpha / math.sqrt(rank) if rslora else alpha / rank
        self.slices = tuple(slices)
        """Which of q, k and v have an adapter of their own; empty: one adapter for all rows."""
        self.dropout = nn.Dropout(dropout)
        several = (len(self.slices),) if self.slices else ()
        rows = base.out_features // 3 if self.slices else base.out_features
        self.lora_a = nn.Parameter(base.weight.new_empty(*several, rank, base.in_features))  # [rank, in], [S, rank, in]
        self.lora_b = nn.Parameter(base.weight.new_zeros(*several, rows, rank))  # [out, rank] or [S, out / 3, rank]
        # As microsoft/LoRA does it; the paper says "random Gaussian".
        for matrix in self.lora_a.data if self.slices else (self.lora_a.data,):
            nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))

    @property
    def weight(self) -> torch.Tensor:
        """The adapted weight [out, in], for networks that read it instead of calling the layer (BEiT, Swin V2, EVA).

        Raises:
            UsageError: in training with dropout, which such a network would leave out.
        """
        if self.training and self.dropout.p:
            raise UsageError(
                "this network reads the weights of its adapted layers itself, so LoRA's dropout cannot act; "
                "set lora.dropout to 0"
            )
        low_rank = self.lora_b @ self.lora_a  # [out, in] or [S, out / 3, in]
        return self.base.weight + self._spread(low_rank) * self.scaling

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        output: torch.Tensor = self.base(inputs)
        if not self.slices:
            low = nn.functional.linear(self.dropout(inputs), self.lora_a)  # [..., rank]
            return output + nn.functional.linear(low, self.lora_b) * self.scaling
        low = nn.functional.linear(self.dropout(inputs), self.lora_a.flatten(0, 1))  # [..., S * rank]
        thirds = list(output.chunk(3, dim=-1))
        for name, part, matrix in zip(self.slices, low.chunk(len(self.slices), dim=-1), self.lora_b, strict=True):
            third = _SLICES.index(name)
            thirds[third] = thirds[third] + nn.functional.linear(part, matrix) * self.scaling
        return torch.cat(thirds, dim=-1)

    def merged(self) -> nn.Linear:
        """A plain linear layer with the weight W + scaling B A, computed in float64 and then cast to W's type."""
        base = self.base
        with torch.no_grad():
            correction = self._spread(self.lora_b.double() @ self.lora_a.double()) * self.scaling
            linear = nn.Linear(
                base.in_features,
                base.out_features,
                bias=base.bias is not None,
                device=base.weight.device,
                dtype=base.weight.dtype,
            )
            linear.weight.copy_(base.weight.double() + correction)
            if base.bias is not None:
                linear.bias.copy_(base.bias)
        return linear

    def _spread(self, low_rank: torch.Tensor) -> torch.Tensor:
        """[S, out / 3, in] to [out, in] with zeros where q, k or v has no adapter."""
        if not self.slices:
            return low_rank
        zeros = torch.zeros_like(low_rank[0])
        found = dict(zip(self.slices, low_rank, strict=True))
        return torch.cat([found.get(name, zeros) for name in _SLICES])


def add_lora(
    model: nn.Module,
    *,
    targets: Sequence[str],
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    rslora: bool = False,
) -> list[str]:
    """Put an adapter beside every linear layer that one of `targets` names; freeze all but these and the classifier.

    Args:
        model: changed in place.
        targets: last parts of layer names ("proj", "fc1"), whole names, or shell patterns of whole names
            ("blocks.1.*.fc1"). "qkv" is a fused layer as one; "q", "k" and "v" are its thirds, each with an adapter
            of its own, whose whole names are like "blocks.0.attn.qkv.q".
        rank: rank of the correction.
        alpha: numerator of its scale alpha / rank.
        dropout: applied to the adapters' input.
        rslora: scale by alpha / sqrt(rank), which keeps high ranks learning as fast as low ones.

    Returns:
        The names of the adapted layers.

    Raises:
        UsageError: a target that names no linear layer (with close matches), two that name the same one as a whole
            and in part, or a rank, alpha or dropout out of range.
    """
    _check_numbers(rank=rank, alpha=alpha, dropout=dropout)
    linear = _linear_layers(model)
    chosen: dict[str, tuple[str, ...]] = {}
    for target in targets:
        found = {name: parts for name, module in linear.items() if (parts := _parts(model, name, module, target))}
        if not found:
            raise UsageError(_no_match(model, linear, target))
        for name, parts in found.items():
            chosen[name] = (*chosen.get(name, ()), *parts)
    if not chosen:
        raise UsageError("LoRA needs at least one target layer")
    slices = {name: _slices(name, parts) for name, parts in chosen.items()}
    model.requires_grad_(False)
    for name in (name for name in linear if name in slices):
        layer = LoraLinear(linear[name], rank=rank, alpha=alpha, dropout=dropout, rslora=rslora, slices=slices[name])
        _replace(model, name, layer.train(linear[name].training))
    classifier(model).requires_grad_(True)
    return [name for name in linear if name in slices]


def adaptable(model: nn.Module, targets: Sequence[str]) -> bool:
    """Whether each of the targets names a linear layer, so that :func:`add_lora` could adapt it."""
    linear = _linear_layers(model)
    return all(any(_parts(model, name, layer, target) for name, layer in linear.items()) for target in targets)


def add_card_lora(model: nn.Module, lora: Lora) -> None:
    """Add the adapters that a card describes (their weights are loaded afterwards)."""
    add_lora(model, targets=lora.targets, rank=lora.rank, alpha=lora.alpha, rslora=lora.rslora)


def has_lora(model: nn.Module) -> bool:
    """Whether any adapter is not merged yet."""
    return any(isinstance(module, LoraLinear) for module in model.modules())


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """What LoRA training may have changed: adapters, classifier and buffers (the statistics of BatchNorm).

    Raises:
        ArtefactError: the network has no adapters.
    """
    adapters = {f"{name}.{key}" for name, _ in _adapters(model) for key in ("lora_a", "lora_b")}
    names = adapters | classifier_tensors(model) | {name for name, _ in model.named_buffers()}
    return {name: tensor.detach() for name, tensor in model.state_dict().items() if name in names}


def merge_lora(model: nn.Module) -> int:
    """Replace every adapter by one plain linear layer that computes the same, in place.

    Returns:
        How many layers were merged.

    Raises:
        ArtefactError: there are none, or one has weights that are not finite; then nothing was changed.
    """
    merged = {name: module.merged() for name, module in _adapters(model)}
    for name, linear in merged.items():
        if not linear.weight.isfinite().all():
            raise ArtefactError(f"{name}: the merged weight is not finite; its training diverged")
    for name, linear in merged.items():
        _replace(model, name, linear)
    model.requires_grad_(True)
    return len(merged)


def _adapters(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    if not found:
        raise ArtefactError("the network has no LoRA adapters to merge or to extract")
    return found


def _check_numbers(*, rank: int, alpha: float, dropout: float) -> None:
    if rank < 1:
        raise UsageError(f"LoRA's rank must be at least 1, got {rank}")
    if not 0 < alpha < math.inf:
        raise UsageError(f"LoRA's alpha must be a positive number, got {alpha}")
    if not 0 <= dropout < 1:
        raise UsageError(f"LoRA's dropout must be in [0, 1), got {dropout}")


def _linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that can be adapted: name -> layer."""
    head = set(classifier(model).modules())
    # nn.MultiheadAttention never calls its out_proj, it reads the weights.
    inside = {
        child for module in model.modules() if isinstance(module, nn.MultiheadAttention) for child in module.modules()
    }
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in head and module not in inside
    }


def _parts(model: nn.Module, name: str, layer: nn.Linear, target: str) -> tuple[str, ...]:
    """What `target` means of a layer: ("",) for all of it, some of q, k, v, or nothing."""
    if _names(target, name):
        return ("",)
    if not _is_fused(model, name, layer):
        return ()
    return tuple(part for part in _SLICES if _names(target, f"{name}.{part}"))


def _names(target: str, name: str) -> bool:
    return target == name.rsplit(".", 1)[-1] or fnmatch.fnmatchcase(name, target)


def _is_fused(model: nn.Module, name: str, layer: nn.Linear) -> bool:
    """Whether the rows of a layer are q, then k, then v, of one size."""
    parent, _, child = name.rpartition(".")
    attention = model.get_submodule(parent)
    # In timm, MaxViT goes through the heads first, TinyViT and EfficientFormer also have values of another size,
    # and half of GCViT's blocks have no query of their own.
    other_order = any(getattr(attention, attribute, False) for attribute in ("head_first", "val_dim", "use_global"))
    return child == "qkv" and layer.out_features % 3 == 0 and not other_order


def _slices(name: str, parts: Sequence[str]) -> tuple[str, ...]:
    if "" not in parts:
        return tuple(part for part in _SLICES if part in parts)
    if set(parts) != {""}:
        raise UsageError(
            f"LoRA targets name {name} as a whole and in part; give either 'qkv' (one adapter) or 'q', 'k', 'v'"
        )
    return ()


def _no_match(model: nn.Module, linear: dict[str, nn.Linear], target: str) -> str:
    bare = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
    inside = ("q", "k", "v", "qkv", "in_proj", "in_proj_weight", "out_proj")
    if bare and (target.rsplit(".", 1)[-1] in inside or any(fnmatch.fnmatchcase(name, target) for name in bare)):
        return (
            f"LoRA target {target!r}: {bare[0]} is torch's nn.MultiheadAttention, which keeps q, k and v in one bare "
            "parameter (in_proj_weight) and calls no linear layer that could be adapted; "
            "target its MLP layers, or take timm's form of the network"
        )
    present = {name.rsplit(".", 1)[-1] for name in linear}
    if any(_is_fused(model, name, layer) for name, layer in linear.items()):
        present |= set(_SLICES)
    elif target in _SLICES and "qkv" in present:
        return f"LoRA target {target!r}: the rows of this network's qkv are not q, then k, then v; target 'qkv' as one"
    close = difflib.get_close_matches(target, [*sorted(present), *linear], n=3)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    return (
        f"LoRA target {target!r} matches no linear layer; {hint}the network has: {', '.join(sorted(present)) or 'none'}"
    )


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
