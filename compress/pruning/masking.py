"""The proof that a network's parts are what hangs together: cutting some of each is the same as masking them.

Two copies of the network with the same random weights: one loses about half of the units of every part, in the other
the same channels are set to zero wherever they are made and read, and normalisations over channels leave them out. A
coupling that was missed, or followed to the wrong channels, makes their answers differ or the cut one fail. Only an
exchange of channels that all go, or all stay, shows in neither: no view, slice or concatenation is so small.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from torch.utils import _pytree as pytree

from zoo.errors import ArtefactError
from zoo.models.shrink import is_depthwise, keep_channels, keep_slices, update

if TYPE_CHECKING:
    from compress.pruning.couplings import Part
    from compress.pruning.structure import Structure

__all__ = ["mask", "verify"]

_TOLERANCE = 1e-4
"""Of what masking changes in the answers. Right couplings differ by rounding (1e-12, or 1e-6 where a layer computes in
float32), wrong ones by shares of 1."""


def verify(structure: Structure, shape: Sequence[int]) -> None:
    """Check every part of a network at once; where that fails, one by one to name the culprit.

    Args:
        structure: nothing of it was removed yet; stays as it is.
        shape: of one input, without the batch.

    Raises:
        ArtefactError: a part whose removal computes something else than the rest of the network did.
    """
    wrong = _difference(structure, structure.parts, shape)
    if wrong is None:
        return
    for part in structure.parts:
        alone = _difference(structure, [part], shape)
        if alone is not None:
            raise _refusal(structure, f"the {part.kind}s of {part.name}", alone)
    raise _refusal(structure, "several layers at once", wrong)


def _refusal(structure: Structure, what: str, how: str) -> ArtefactError:
    return ArtefactError(
        f"{type(structure.model).__name__} cannot be pruned: removing {what} is not the same as masking them ({how}), "
        "so the dependency graph missed a coupling; export the network unpruned (pocketzoo export)"
    )


def _difference(structure: Structure, parts: Sequence[Part], shape: Sequence[int]) -> str | None:
    """How a network without half of each part differs from one with them masked; None: not at all."""
    if not parts:
        return None
    choose = random.Random(0)
    # An odd number, so that channels that were taken for each other's neighbours never all go in pairs.
    doomed = {part: choose.sample(range(len(part.units)), (len(part.units) // 2 - 1) | 1) for part in parts}
    cut = structure.copy()
    _randomize(cut.model)
    cut.model.eval()
    whole = copy.deepcopy(cut.model)
    generator = torch.Generator().manual_seed(1)
    device = next(whole.parameters()).device
    images = torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(device)
    with torch.no_grad():
        before = _answers(whole, images)
        mask(whole, structure, doomed)
        wanted = _answers(whole, images)
        try:
            for part, units in doomed.items():
                cut.remove(part, units)
            cut.finish()
            found = _answers(cut.model, images)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    if found.shape != wanted.shape:
        return f"answers of shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
    effect = (before - wanted).abs().max()
    if not effect > 1e-12 * before.abs().max():
        return "its answers do not depend on them"
    share = float((found - wanted).abs().max() / effect)
    return None if share <= _TOLERANCE else f"the answers differ by {share:.1g} of the effect"


def mask(model: nn.Module, structure: Structure, doomed: Mapping[Part, Sequence[int]]) -> None:
    """Silence units in a copy of a structure's network, in place, without changing a shape.

    Their weights and biases become zero wherever a part reaches, and a normalisation over channels is computed over
    the others alone.
    """
    lost: dict[tuple[str, str], set[int]] = {}
    cuts = {}
    for part, units in doomed.items():
        roots = {channel for unit in units for channel in part.units[unit]}
        for cut in structure.cuts(part):
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


def _randomize(model: nn.Module) -> None:
    """Weights of float64 that let every channel count: a network as it is built or trained has zeros in places."""
    generator = torch.Generator().manual_seed(0)
    model.double()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("running_mean", "bias")):
                tensor.copy_(0.3 * values)
            elif name.endswith("running_var") or (isinstance(tensor, nn.Parameter) and tensor.ndim < 2):
                tensor.copy_(1 + 0.5 * values.tanh())
            elif isinstance(tensor, nn.Parameter):
                tensor.copy_(values * (len(tensor) / tensor.numel()) ** 0.5)


def _answers(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """All outputs side by side: [B, ...]."""
    outputs = pytree.tree_leaves(model(images))
    return torch.cat([output.flatten(1) for output in outputs if isinstance(output, torch.Tensor)], dim=1)
