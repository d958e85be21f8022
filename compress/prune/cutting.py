"""What of a network can be cut, and the cutting: channels, hidden units, heads and embedding, with all that belongs.

torch-pruning's dependency graph (Fang et al. 2023, DepGraph, arXiv 2301.12900) follows a channel from the layer that
makes it to every layer that it touches; `couplings` makes parts of that. The graph guesses at what it does not know,
so nothing is believed without proof. Two copies of the network get the same random weights: one loses about half of the
units of every part, in the other the same channels are masked (`masking`). A coupling that was missed, or followed to
the wrong channels, makes their answers differ or the cut one fail. Only an exchange of channels that all go, or all
stay, shows in neither: no view, slice or concatenation is so small.

Removing dimensions of heads changes the factor by which PyTorch multiplies the products of queries and keys, one over
the root of their number. The queries' weights take up the difference, so that what is left computes what it was
trained to, and comes back from tensor shapes and numbers of heads alone.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Sequence

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compress.prune.couplings import Cut, Part, is_attention, parts_of, traced
from compress.prune.masking import mask
from zoo.artefact.card import Input
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.shrink import keep_channels, keep_slices, qkv_width, set_heads, update

__all__ = ["Cut", "Part", "Structure", "shape_of", "verify"]

_TOLERANCE = 1e-4
"""Of what masking changes in the answers. Right couplings differ by rounding (1e-12, or 1e-6 where a layer computes in
float32), wrong ones by shares of 1."""


def shape_of(spec: Input | torch.Tensor) -> tuple[int, ...]:
    """Shape of one input of a network, without the batch.

    Args:
        spec: a card's input, or an example [B, ...] of what the network takes.

    Raises:
        UsageError: an example without a batch.
    """
    if not isinstance(spec, torch.Tensor):
        return tuple(spec.shape)
    if spec.ndim < 2:
        raise UsageError(f"expected an example of the network's input with its batch, [B, ...], got {list(spec.shape)}")
    return tuple(spec.shape[1:])


class Structure:
    """The couplings of one network, traced once; `remove` cuts the network in place, `finish` ends the cutting.

    Args:
        model: stays as it is until something is removed.
        spec: its input, or for any module that maps a tensor [B, ...] to one or more an example, whose shape is read.
        embedding: whether the width of a transformer's embedding is one of the parts.

    Raises:
        ArtefactError: couplings that cannot be followed; names the network and the layer.
    """

    model: nn.Module
    parts: list[Part]
    """In the order of the network's layers."""

    def __init__(self, model: nn.Module, spec: Input | torch.Tensor, *, embedding: bool = False) -> None:
        shape = shape_of(spec)
        self.model = model
        self._alive: dict[tuple[str, str], list[int]] = {}
        self._head_dims = {name: int(module.head_dim) for name, module in model.named_modules() if is_attention(module)}
        with traced(model, shape) as (graph, images):
            self._cuts = dict(parts_of(graph, model, images, embedding))
        self.parts = list(self._cuts)
        verify(self, shape)

    def cuts(self, part: Part) -> list[Cut]:
        """What goes with the part's channels, by the numbers of the network as it was traced."""
        return self._cuts[part]

    def copy(self) -> Structure:
        """The same parts of a copy of the network, which can be cut apart from this one; nothing is traced anew."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model)
        twin._alive = copy.deepcopy(self._alive)
        return twin

    def remove(self, part: Part, doomed: Sequence[int]) -> None:
        """Cut units of a part out of the network, in place.

        Args:
            part: one of `parts`.
            doomed: indices into `part.units`, as they are numbered there whatever was removed before.

        Raises:
            UsageError: an index that does not exist, or too few units left.
            ArtefactError: a layer that several parts reach would be left without channels. Nothing was removed.
        """
        gone = set(doomed)
        left = len(part.units) - len(gone)
        if not gone <= set(range(len(part.units))):
            raise UsageError(f"{part.name} has {len(part.units)} units ({part.kind}), got the indices {sorted(gone)}")
        if left < 1 or left % part.multiple:
            raise UsageError(
                f"{part.name}: removing {len(gone)} of {len(part.units)} units ({part.kind}) would leave {left}; "
                f"leave a multiple of {part.multiple}, at least {part.multiple}"
            )
        roots = {channel for unit in gone for channel in part.units[unit]}
        kept: dict[Cut, list[int]] = {}
        for cut in self._cuts[part]:
            lost = {channel for channel, root in zip(cut.channels, cut.roots, strict=True) if root in roots}
            kept[cut] = [position for position, channel in enumerate(self.alive(cut)) if channel not in lost]
            if not kept[cut]:
                raise ArtefactError(f"removing units of {part.name} ({part.kind}) leaves {cut.path} without channels")
        for cut, positions in kept.items():
            alive, layer = self.alive(cut), self.model.get_submodule(cut.path)
            self._alive[cut.place] = [alive[position] for position in positions]
            if len(positions) == len(alive):
                continue
            if cut.axis is None:
                keep_channels(layer, cut.name, torch.tensor(positions))
            else:
                keep_slices(layer, cut.name, cut.axis, torch.tensor(positions))

    def alive(self, cut: Cut) -> list[int]:
        """The channels at a cut's place that are left, by the numbers of the network as it was traced."""
        return self._alive.get(cut.place, list(range(cut.total)))

    def finish(self) -> None:
        """Make heads, groups and widths that the network keeps as numbers agree with what is left of it."""
        update(self.model, {self.model.get_submodule(path) for path, _ in self._alive})
        for name, before in self._head_dims.items():
            left = self._alive.get((f"{name}.proj", "in"))
            if left is None:
                continue
            attention = self.model.get_submodule(name)
            heads, was = len({channel // before for channel in left}), int(attention.head_dim)  # type: ignore[arg-type]
            set_heads(attention, heads)
            _rescale_queries(attention, was)


def _rescale_queries(attention: nn.Module, before: int) -> None:
    """Undo what the number of a head's dimensions, which was `before`, does to the scale of the attention's logits."""
    qkv = attention.get_submodule("qkv")
    after = int(attention.head_dim)  # type: ignore[arg-type]
    queries = qkv_width(attention) // 3
    with torch.no_grad():
        for tensor in (qkv.weight, qkv.bias):
            if isinstance(tensor, torch.Tensor):
                tensor[:queries] *= (after / before) ** 0.5


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
        mask(whole, structure.cuts, doomed)
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
