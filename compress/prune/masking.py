"""Masking: silencing channels of a network without changing a shape, the measure of what cutting them must compute.

Weights and biases are set to zero wherever the channels are made and read, and normalisations over channels leave them
out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers.grn import GlobalResponseNorm
from torch import nn

from compress.prune.couplings import BLOCK, Cut, Part
from zoo.networks.shrink import is_depthwise, keep_channels, keep_slices, update

__all__ = ["mask"]


def mask(model: nn.Module, cuts_of: Callable[[Part], Sequence[Cut]], doomed: Mapping[Part, Sequence[int]]) -> None:
    """Silence units of a network in place.

    Args:
        model: the network whose parts they are, or a copy, with nothing removed yet.
        cuts_of: where each part reaches.
        doomed: part -> indices into its units; of a block, all that it has is zero.
    """
    lost: dict[tuple[str, str], set[int]] = {}
    cuts = {}
    for part, units in doomed.items():
        if part.kind == BLOCK:
            for parameter in model.get_submodule(part.name).parameters():
                parameter.zero_()
        roots = {channel for unit in units for channel in part.units[unit]}
        for cut in cuts_of(part):
            cuts[cut.place] = cut
            gone = {channel for channel, root in zip(cut.channels, cut.roots, strict=True) if root in roots}
            lost.setdefault(cut.place, set()).update(gone)
    narrowed: dict[str, tuple[nn.Module, torch.Tensor]] = {}
    for place, cut in cuts.items():
        layer = model.get_submodule(cut.path)
        kept = torch.tensor([channel for channel in range(cut.total) if channel not in lost[place]])
        if not _over_channels(layer):
            _silence(layer, cut.name, cut.axis, torch.tensor(sorted(lost[place]), dtype=torch.int64))
            continue
        smaller, _ = narrowed.setdefault(cut.path, (copy.deepcopy(layer), kept))
        if cut.axis is None:
            keep_channels(smaller, cut.name, kept)
        else:
            keep_slices(smaller, cut.name, cut.axis, kept)
            update(smaller, [smaller])
    for path, (smaller, kept) in narrowed.items():
        _leave_out(model.get_submodule(path), smaller, kept)


def _silence(layer: nn.Module, name: str, axis: int | None, lost: torch.Tensor) -> None:
    if axis is not None:
        getattr(layer, name).index_fill_(axis, lost, 0)
    elif isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
        transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
        if name == "in" and getattr(layer, "groups", 1) > 1 and not is_depthwise(layer):
            lost = lost[lost < layer.weight.shape[1]]
        layer.weight.index_fill_(int((name == "in") != transposed), lost, 0)
        if name == "out" and layer.bias is not None:
            layer.bias.index_fill_(0, lost, 0)
    else:
        for tensor in (layer.weight, layer.bias) if not isinstance(layer, nn.PReLU) else ():
            if isinstance(tensor, torch.Tensor):
                tensor.index_fill_(0, lost, 0)


def _over_channels(layer: nn.Module) -> bool:
    """Whether a module's answer in one channel depends on the others by itself: LayerNorm, RMSNorm, GroupNorm, GRN."""
    return hasattr(layer, "normalized_shape") or isinstance(layer, nn.GroupNorm | GlobalResponseNorm)


def _leave_out(layer: nn.Module, smaller: nn.Module, kept: torch.Tensor) -> None:
    """Let `smaller`, which is the layer without the lost channels, answer for it in those that are kept."""
    # timm's modules for maps with the channels first say so in their names, its GRN in an attribute.
    first = isinstance(layer, nn.GroupNorm) or "2d" in type(layer).__name__
    axis = int(getattr(layer, "channel_dim", 1 if first else -1))

    def answer(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        part = smaller(inputs[0].index_select(axis, kept))
        return torch.zeros_like(output).index_copy(axis, kept, part.to(output.dtype))

    layer.register_forward_hook(answer)
