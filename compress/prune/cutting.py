"""What of a network can be cut, and the cutting: channels, hidden units, heads and embedding, with all that belongs.

torch-pruning's dependency graph (Fang et al. 2023, DepGraph, arXiv 2301.12900) follows a channel from the layer that
makes it to every layer that it touches; `couplings` makes parts of that. The graph guesses at what it does not know,
so nothing is believed without proof (`proof`): what cannot be proved is kept as it is, and named.

Removing dimensions of heads changes the factor by which PyTorch multiplies the products of queries and keys, one over
the root of their number. The queries' weights take up the difference, so that what is left computes what it was
trained to, and comes back from tensor shapes and numbers of heads alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from compress.prune.couplings import BLOCK, REMEDY, Cut, Kept, Part, is_attention, parts_of, traced
from compress.prune.proof import provable
from zoo.artefact.card import Input
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.shrink import drop_blocks, keep_channels, keep_slices, qkv_width, set_heads, update

__all__ = ["Cut", "Kept", "Part", "Structure", "shape_of"]


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
        ArtefactError: the network cannot be followed, or nothing of it can be cut; names the layer.
    """

    model: nn.Module
    parts: list[Part]
    """In the order of the network's layers; each was proved."""
    kept: tuple[Kept, ...]
    """What could not be followed or proved, and stays as it is."""

    def __init__(self, model: nn.Module, spec: Input | torch.Tensor, *, embedding: bool = False) -> None:
        shape = shape_of(spec)
        self.model = model
        self._alive: dict[tuple[str, str], list[int]] = {}
        self._head_dims = {name: int(module.head_dim) for name, module in model.named_modules() if is_attention(module)}
        found = list(parts_of(traced(model, shape), embedding))
        self._cuts = dict(one for one in found if not isinstance(one, Kept))
        self.parts, wrong = provable(self, list(self._cuts), shape)
        self.kept = tuple(dict.fromkeys([*(one for one in found if isinstance(one, Kept)), *wrong]))
        if self.kept and not self.parts:
            first, more = self.kept[0], f", and {len(self.kept) - 1} other layers" if self.kept[1:] else ""
            raise ArtefactError(
                f"{type(model).__name__} cannot be pruned because of {first.layer}: {first.reason}{more}; {REMEDY}"
            )

    def cuts(self, part: Part) -> list[Cut]:
        """What goes with the part's channels, by the numbers of the network as it was traced; of a block, nothing."""
        return self._cuts.get(part, [])

    def copy(self) -> Structure:
        """The same parts of a copy of the network, which can be cut apart from this one; nothing is traced anew."""
        return self.of(copy.deepcopy(self.model))

    def of(self, model: nn.Module) -> Structure:
        """The same parts of another network of the same layers and widths."""
        twin = copy.copy(self)
        twin.model = model
        twin._alive = copy.deepcopy(self._alive)
        return twin

    def remove(self, part: Part, doomed: Sequence[int]) -> None:
        """Cut units of a part out of the network, in place.

        Args:
            part: one of `parts`; or a block, after `finish`, since other parts reach into it.
            doomed: indices into `part.units`, as they are numbered there whatever was removed before.

        Raises:
            UsageError: an index that does not exist, or too few units left.
            ArtefactError: a layer that several parts reach would be left without channels. Nothing was removed.
        """
        if part.kind == BLOCK:
            drop_blocks(self.model, [part.name])
            return
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
