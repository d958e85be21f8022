"""What a network costs as a function of how much of each part stays, without pruning it.

A layer that keeps a share a of its outputs and b of its inputs keeps a x b of its multiply-accumulates and weights, so
that one counted run of the whole network tells the cost of any other width. T terms, P parts, N candidates.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress.prune.cutting import Part, Structure, shape_of
from zoo.artefact.card import Input
from zoo.networks.shrink import attentions

__all__ = ["Costs"]

_Floats = npt.NDArray[np.float64]


class Costs:
    """Multiply-accumulates of one example, and parameters, for numbers of units that stay."""

    def __init__(self, structure: Structure, spec: Input | torch.Tensor, parts: Sequence[Part]) -> None:
        """Count a network once.

        Args:
            structure: of a network in evaluation mode of which nothing was removed yet.
            spec: the network's input, or an example [B, ...] of it.
            parts: those of its parts that are wanted.
        """
        model = structure.model
        self._whole = np.array([len(part.units) for part in parts], dtype=np.float64)
        terms = _Terms(len(parts))
        shares = _shares(structure, parts)
        counted = _count(model, shape_of(spec))
        heads = attentions(model)
        for name, module in model.named_modules():
            own = counted[name] - sum(
                counted[f"{name}.{child}" if name else child] for child, _ in module.named_children()
            )
            if name in heads:
                # Queries times keys, and attention times values: as wide as what the projection reads.
                terms.add(name, shares[f"{name}.proj", "in"], macs=own)
                own = 0
            for key, tensor in module.named_parameters(recurse=False):
                both = key == "weight" and tensor.ndim > 1
                out = shares[name, key] or shares[name, "out"]
                sides = out, shares[name, "in"] if both else {}
                terms.add(name, *sides, macs=own if both else 0, parameters=tensor.numel())
                own = 0 if both else own
            terms.add(name, {}, macs=own)
        self._layers = terms.layers
        self._matrices = terms.matrices()
        self._bases: dict[str, _Floats] = {
            "macs": np.array(terms.macs, dtype=np.float64),
            "params": np.array(terms.parameters, dtype=np.float64),
        }
        self.whole: dict[str, int] = {goal: round(float(base.sum())) for goal, base in self._bases.items()}
        """`macs` and `params` of the network as it is."""

    def without(self, blocks: Sequence[Part]) -> Costs:
        """The costs of the same network without some of its residual blocks; `whole` stays what it was with them."""
        inside = tuple(f"{block.name}." for block in blocks)
        stays = np.array([not f"{layer}.".startswith(inside) for layer in self._layers])
        found = copy.copy(self)
        found._bases = {goal: base * stays for goal, base in self._bases.items()}
        return found

    def of(self, goal: str, left: npt.ArrayLike) -> _Floats:
        """`macs` or `params` [N] where `left` [N, P] units stay."""
        gone = 1 - np.asarray(left, dtype=np.float64) / self._whole
        kept = np.ones((len(gone), len(self._bases[goal])))
        for matrix in self._matrices:
            kept *= 1 - gone @ matrix.T
        return np.asarray(kept @ self._bases[goal])


class _Terms:
    """Products of a base and of what stays of up to four dimensions."""

    def __init__(self, parts: int) -> None:
        self._parts = parts
        self._rows: list[tuple[dict[int, float], ...]] = []
        self.layers: list[str] = []
        self.macs: list[float] = []
        self.parameters: list[float] = []

    def add(self, layer: str, *sides: dict[int, float], macs: float = 0, parameters: float = 0) -> None:
        """A term of a layer that shrinks with each of `sides`: part -> share of that side's channels that is its."""
        if macs or parameters:
            self._rows.append(sides)
            self.layers.append(layer)
            self.macs.append(macs)
            self.parameters.append(parameters)

    def matrices(self) -> list[_Floats]:
        """Four matrices [T, P]: what stays of a term is the product of 1 - matrix @ gone."""
        found = [np.zeros((len(self._rows), self._parts)) for _ in range(4)]
        for row, sides in enumerate(self._rows):
            for number, side in enumerate(sides):
                for part, share in side.items():
                    # Two parts that hold the same channels (heads, and dimensions of heads) multiply; parts that hold
                    # different channels (a concatenation) add up.
                    first = found[2 * number]
                    crowded = first[row].sum() + share > 1 + 1e-9
                    found[2 * number + int(crowded)][row, part] += share
        return found


def _shares(structure: Structure, parts: Sequence[Part]) -> defaultdict[tuple[str, str], dict[int, float]]:
    """(path of a layer, side or parameter) -> part -> share of the channels there that belongs to the part."""
    found: defaultdict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for number, part in enumerate(parts):
        for cut in structure.cuts(part):
            shares = found[cut.place]
            shares[number] = shares.get(number, 0.0) + len(cut.channels) / cut.total
    return found


def _count(model: nn.Module, shape: Sequence[int]) -> defaultdict[str, int]:
    """Multiply-accumulates of one example by module name; a module's includes its children's."""
    like = next(model.parameters())
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            # As in zoo.networks.registry.count_macs: the counter fails on views of parameters that want gradients.
            parameter.requires_grad_(False)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
    prefix = type(model).__name__
    found: defaultdict[str, int] = defaultdict(int)
    for name, operations in counter.get_flop_counts().items():
        if name == prefix or name.startswith(f"{prefix}."):
            found[name[len(prefix) + 1 :]] = sum(operations.values()) // 2
    return found
