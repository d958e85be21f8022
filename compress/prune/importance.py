"""How important a unit of a group of coupled layers is; the least important go first.

A *slice* is what one layer contributes to a channel: its weights that produce the channel (output side), or that read
it (input side). C channels of a group, U units, B images, F weights of a layer per channel.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional

from compress.prune.cutting import Cut, Part, Structure
from zoo.base.errors import UsageError, unknown_name
from zoo.base.progress import track
from zoo.data.decoded import DecodedImages, Normalise

__all__ = ["IMPORTANCES", "check_importance", "comparable", "score", "scores"]

_TEMPERATURE = 4.0
"""Of the softened answers whose loss `taylor` follows; as in distillation (Hinton et al. 2015, arXiv 1503.02531).

Measured on mnist5k, one shot to 25 % of the multiply-accumulates, global, BatchNorm recalibrated: ResNet-10-T (98.3 %)
keeps 97 %, a ViT (95.9 %) 86 %; without it and without centring 48 and 76 %; with l2 80 and 41 %."""

_PIXELS = 400_000
"""Of the images whose gradients are computed at once (a network keeps every activation for them); each image counts
for itself, so that this changes no score."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def check_importance(name: str) -> None:
    """Check the name of an importance.

    Raises:
        UsageError: unknown; lists close matches.
    """
    if name not in IMPORTANCES:
        raise unknown_name("importance", name, IMPORTANCES)


def score(structure: Structure, part: Part, importance: str, *, seed: int = 0) -> torch.Tensor:
    """How important each unit of a part is, as float32 [U]: the mean over its channels; see IMPORTANCES.

    Args:
        structure: of a network of which nothing was removed yet.
        part: one of its parts.
        importance: any but `taylor`, whose scores come from images; see :func:`scores`.
        seed: of the importance `random`.

    Raises:
        UsageError: unknown importance, or `bn` for a part without BatchNorm.
    """
    check_importance(importance)
    found = _FROM_WEIGHTS.get(importance)
    if found is None:
        raise UsageError(f"the importance {importance} comes from gradients over images, not from weights alone")
    with torch.no_grad():
        channels = found(structure, part, seed)
    return torch.stack([channels[list(unit)].mean() for unit in part.units])


def scores(
    structure: Structure, parts: Sequence[Part], importance: str, *, images: DecodedImages | None = None, seed: int = 0
) -> list[torch.Tensor]:
    """How important the units of every part are: float32 [U] each, on the CPU; see IMPORTANCES.

    Args:
        structure: of a network of which nothing was removed yet; it stays as it is.
        parts: those of its parts that are wanted.
        importance: one of IMPORTANCES.
        images: labelled training images without augmentation; only `taylor` reads them.
        seed: of the importance `random`.

    Raises:
        UsageError: unknown importance, `taylor` without images, or `bn` for a part without BatchNorm.
    """
    check_importance(importance)
    if importance != "taylor":
        return [score(structure, part, importance, seed=seed) for part in parts]
    if images is None or not len(images):
        raise UsageError(
            "the importance taylor reads gradients over training images and got none; name their data set with --data, "
            "or use --importance l2"
        )
    return _taylor(structure, parts, images)


def comparable(found: Sequence[torch.Tensor], importance: str, prices: Sequence[float]) -> list[torch.Tensor]:
    """Scores that can be ranked over parts.

    `taylor` is in units of the loss everywhere (Molchanov et al. 2019, section 3), so what counts is loss per price,
    as in a knapsack (Shen et al. 2021, HALP, arXiv 2110.10811). The others are divided by their part's mean: the
    scale of a layer's weights says nothing about its importance, since the next layer or its BatchNorm undoes it (what
    DepGraph's code does as `normalizer="mean"`; Fang et al. 2023, arXiv 2301.12900).

    Args:
        found: scores of the units of each part, [U] each.
        importance: what they are.
        prices: what one unit of each part costs, in whatever the goal counts.
    """
    if importance == "taylor":
        return [scores / price for scores, price in zip(found, prices, strict=True)]
    return [scores / scores.mean().clamp(min=torch.finfo(scores.dtype).tiny) for scores in found]


def _norm(structure: Structure, part: Part, power: int) -> torch.Tensor:
    """Sum of |w|^power over each channel's weights, averaged over the coupled layers: [C]."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear, *_NORMS)
    found = [(rows.abs().pow(power).sum(1), cut) for rows, cut in _slices(structure, part, kinds)]
    return _averaged(part, found)


def _fpgm(structure: Structure, part: Part, seed: int) -> torch.Tensor:
    """Sum of the distances of each channel's filter to the other filters: He et al. 2019, equation 6.

    Where several layers put out the channel (residual connections), the mean over them; each is divided by its own
    mean first, because longer filters are farther from each other.
    """
    found = []
    for rows, cut in _slices(structure, part, (nn.modules.conv._ConvNd, nn.Linear)):
        if cut.name == "out":
            wide = rows.double()  # so that the fast way by matrix products does not cancel
            distances = torch.cdist(wide, wide, compute_mode="use_mm_for_euclid_dist").sum(1).float()
            found.append((distances / distances.mean().clamp(min=torch.finfo(rows.dtype).tiny), cut))
    return _averaged(part, found)


def _bn(structure: Structure, part: Part, seed: int) -> torch.Tensor:
    """Mean of |gamma| of the BatchNorm layers that scale the channel: [C]."""
    found = [(rows.abs().sum(1), cut) for rows, cut in _slices(structure, part, (nn.modules.batchnorm._BatchNorm,))]
    if not found:
        raise UsageError(
            f"the importance bn reads the scales of BatchNorm, and the {part.kind}s of {part.name} have none; "
            "use --importance l2"
        )
    return _averaged(part, found)


def _random(structure: Structure, part: Part, seed: int) -> torch.Tensor:
    # The name, too: parts of the same width would lose the same channels otherwise.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {part.name} {part.kind}".encode()))
    return torch.rand(_width(part), generator=generator)


_FROM_WEIGHTS: Mapping[str, Callable[[Structure, Part, int], torch.Tensor]] = MappingProxyType(
    {
        "l1": lambda structure, part, seed: _norm(structure, part, 1),
        "l2": lambda structure, part, seed: _norm(structure, part, 2),
        "fpgm": _fpgm,
        "bn": _bn,
        "random": _random,
    }
)
"""Name -> a function of a structure, one of its parts and a seed that returns a score per channel [C]."""

IMPORTANCES: Mapping[str, str] = MappingProxyType(
    {
        "l1": "sum of absolute weights of all coupled layers (Li et al. 2017, arXiv 1608.08710)",
        "l2": "sum of squared weights of all coupled layers (Fang et al. 2023, arXiv 2301.12900)",
        "fpgm": "distance of a filter to the others of its layer (He et al. 2019, arXiv 1811.00250)",
        "taylor": "first-order change of the loss over training images (Molchanov et al. 2019, arXiv 1906.10771)",
        "bn": "scale of BatchNorm (Liu et al. 2017, arXiv 1708.06519)",
        "random": "a seeded random number: the floor that the others must beat",
    }
)
"""Name -> what it is."""


def _width(part: Part) -> int:
    """C: the number of channels of all units."""
    return 1 + max(max(unit) for unit in part.units)


def _averaged(part: Part, found: Sequence[tuple[torch.Tensor, Cut]]) -> torch.Tensor:
    """Mean over layers of the values [n] that each gives to its channels, as [C].

    A layer that sees a channel in several places (after flattening a feature map; queries, keys and values) adds
    them up.
    """
    total = torch.zeros(_width(part))
    for values, cut in found:
        total.index_add_(0, torch.tensor(cut.roots), values.float().cpu())
    return total / max(1, len(found))


def _slices(structure: Structure, part: Part, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[torch.Tensor, Cut]]:
    """Of each coupled layer of these kinds that has weights: those of the part's channels, [n, F]."""
    for cut in structure.cuts(part):
        layer = structure.model.get_submodule(cut.path)
        if isinstance(layer, kinds) and cut.axis is None and isinstance(layer.weight, torch.Tensor):
            yield _rows(layer, layer.weight, cut.name)[list(cut.channels)], cut


def _rows(layer: nn.Module, weight: torch.Tensor, side: str) -> torch.Tensor:
    """The weights of each channel of one side of a layer: [channels, F]."""
    if weight.ndim == 1:
        return weight.unsqueeze(1)
    groups = layer.groups if isinstance(layer, nn.modules.conv._ConvNd) else 1
    if (side == "out") != isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return weight.flatten(1)
    # Input channel j of group g is read by the outputs of group g only (of a transposed convolution, the other way).
    apart = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)  # [g, out / g, in / g, kernel]
    return apart.transpose(1, 2).reshape(groups * weight.shape[1], -1)  # [in, out / g x kernel]


def _taylor(structure: Structure, parts: Sequence[Part], images: DecodedImages) -> list[torch.Tensor]:
    """Mean over images of the square of what the loss changes, to first order, if a unit's features become constant.

    This is Molchanov's gate (section 3.1), (dL/dz)^2 with z multiplying the feature: the sum of x dL/dx over the
    positions and channels of a unit and over the layers that read it. It deviates in three ways. Each image counts for
    itself instead of a minibatch, so that the signs of different images do not cancel. The feature is x minus its mean
    over the images (Evci et al. 2018, "Mean Replacement Pruning"): a constant comes back when BatchNorm is
    recalibrated, or with a bias. And the logits are divided by _TEMPERATURE, since a network that fits its training
    images has no slope left on most of them.
    """
    # Of a copy: networks keep what they computed in evaluation, here with gradients.
    model = copy.deepcopy(structure.model).eval()
    device = next(model.parameters()).device
    gates = [_gates(model, structure.cuts(part), part) for part in parts]
    taps = {(layer, side): _Tap(layer, side) for found in gates for layer, side, _, _ in found}
    prepare = Normalise(images.spec, device)
    size = max(1, min(64, _PIXELS // (images.spec.size[0] * images.spec.size[1])))
    try:
        for batch, labels in track(images.in_order(size), total=-(-len(images) // size), description="Gradients"):
            with torch.enable_grad():
                # What wants a gradient is the input, so that none is computed for the weights.
                logits = model(prepare(batch.to(device)).requires_grad_()) / _TEMPERATURE
                loss = functional.cross_entropy(logits, labels.to(device), reduction="sum")
                slopes = torch.autograd.grad(loss, [view for tap in taps.values() for view in tap.seen])
            rest = iter(slopes)
            for tap in taps.values():
                tap.take(rest)
    finally:
        for tap in taps.values():
            tap.close()
    changes = {key: tap.changes() for key, tap in taps.items()}
    totals = []
    for part, found in zip(parts, gates, strict=True):
        moved = torch.zeros(len(images), len(part.units))
        for layer, side, idxs, units in found:
            moved.index_add_(1, units, changes[layer, side][:, idxs])
        totals.append(moved.square().mean(0))
    return totals


_Gate = tuple[nn.Module, str, list[int], torch.Tensor]
"""A layer, its side, indices [n] there, and the unit of each [n]."""


def _gates(model: nn.Module, cuts: Sequence[Cut], part: Part) -> list[_Gate]:
    """Where the features of a part's units are seen: at the layers that read them.

    Queries and keys are read by no layer, so that the gates of a head's dimensions are at what puts them out.
    """
    owner = torch.zeros(_width(part), dtype=torch.int64)
    for index, unit in enumerate(part.units):
        owner[list(unit)] = index
    found: list[_Gate] = []
    for cut in cuts:
        layer = model.get_submodule(cut.path)
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) and cut.axis is None:
            found.append((layer, cut.name, list(cut.channels), owner[list(cut.roots)]))
    wanted = "out" if part.kind == "head dimension" else "in"
    return [gate for gate in found if gate[1] == wanted] or found


class _Tap:
    """Notes a layer's input or output x at every call, to say (x - mean of x) dL/dx of each image and channel."""

    def __init__(self, layer: nn.Module, side: str) -> None:
        self.seen: list[torch.Tensor] = []
        self._moved: list[torch.Tensor] = []
        self._slopes: list[torch.Tensor] = []
        self._sum, self._count = torch.zeros(1, dtype=torch.float64), 0
        self._channels_last = isinstance(layer, nn.Linear)
        if side == "in":
            self._handle = layer.register_forward_pre_hook(lambda _, given: (self._alias(given[0]), *given[1:]))
        else:
            self._handle = layer.register_forward_hook(lambda _, given, made: self._alias(made))

    def _alias(self, features: torch.Tensor) -> torch.Tensor:
        # A view of its own: the gradient of `features` itself is the sum over everything that reads it.
        self.seen.append(features.view_as(features))
        return self.seen[-1]

    def take(self, slopes: Iterator[torch.Tensor]) -> None:
        """Add up a batch over calls and positions; `slopes` goes on with dL/dx of each call."""
        pairs = [(features.detach(), next(slopes)) for features in self.seen]
        self.seen.clear()
        self._moved.append(torch.stack([self._summed(features * slope) for features, slope in pairs]).sum(0))
        self._slopes.append(torch.stack([self._summed(slope) for _, slope in pairs]).sum(0))
        for features, _ in pairs:
            total = self._summed(features).sum(0).double()
            self._sum = self._sum + total
            self._count += features.numel() // len(total)

    def _summed(self, values: torch.Tensor) -> torch.Tensor:
        """Values at every position as their sums, [B, channels]."""
        values = values.movedim(-1, 1) if self._channels_last else values  # [B, channels, ...]
        return (values.flatten(2).sum(2) if values.ndim > 2 else values).float().cpu()

    def changes(self) -> torch.Tensor:
        """Sum over calls and positions of (x - mean) dL/dx: [N, channels], N images."""
        return torch.cat(self._moved) - (self._sum / self._count).float() * torch.cat(self._slopes)

    def close(self) -> None:
        """Take the hook off."""
        self._handle.remove()
