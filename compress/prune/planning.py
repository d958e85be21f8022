"""Reduce a network in memory to a goal: multiply-accumulates, parameters or latency."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from compress.prune.cutting import Kept, Part, Structure, shape_of
from compress.prune.depth import chosen_blocks, residual_blocks
from compress.prune.importance import check_importance, comparable, scores
from compress.prune.macs import Costs
from compress.prune.network_latency import network_ms
from compress.prune.widths import OutOfReachError, choose, ladder
from zoo.artefact.card import Input
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.progress import note
from zoo.data.decoded import DecodedImages
from zoo.networks.registry import count_macs
from zoo.training.recipe import PruneConfig

__all__ = ["Plan", "Step", "parts_for", "reduce"]

LATENCY_TOLERANCE = 0.05
"""The search for a latency ends with a network that is at most this share faster than asked for."""

_TRIES = 6
"""Networks that are exported and timed at most."""

_Name = tuple[str, str]
"""A part's name and kind."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What goes from one group of coupled layers."""

    layer: str
    """The layer the group is named after."""
    unit: str
    """`channel`, `hidden unit`, `head`, `head dimension`, `embedding` or `block`."""
    before: int
    after: int
    macs: float
    """Share of the whole network's multiply-accumulates that would go with these units alone."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What pruning will do; nothing is changed by making one."""

    importance: str
    scope: str
    steps: tuple[Step, ...]
    """The groups that lose something."""
    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    bytes_before: int
    """Of all tensors."""
    bytes_after: int
    kept: tuple[Kept, ...] = ()
    """Layers that stay whole because what their channels hang together with is not understood, or was not proved."""
    latency_ms: float | None = None
    """Of the pruned network in ONNX Runtime on this machine, where that was the goal."""

    @property
    def ratio(self) -> float:
        """Share of the multiply-accumulates that stays."""
        return self.macs_after / self.macs_before


def reduce(
    model: nn.Module, spec: Input | torch.Tensor, config: PruneConfig, images: DecodedImages | None
) -> tuple[nn.Module, Plan]:
    """A pruned copy of `model` that was run, and the plan that made it.

    Args:
        model: stays as it is.
        spec: the network's input, or an example [B, ...] of it.
        config: the goal.
        images: training images for the importance `taylor`.

    Raises:
        UsageError: a goal that cannot be reached with the least widths (the nearest is named), or an importance that
            the network, an example for an input or the lack of images does not allow.
        ArtefactError: the network has couplings that this pruning does not understand, costs more than its couplings
            say, or has weights or gradients that are no numbers.
    """
    check_importance(config.importance)
    goal, value = config.goal
    if isinstance(spec, torch.Tensor):
        if config.importance == "taylor":
            raise UsageError(
                "the importance taylor reads images, which an example tensor says nothing about; "
                "give the network's zoo.artefact.card.Input instead, or use the importance l2"
            )
        if goal == "latency_ms":
            raise UsageError(
                "prune.latency_ms exports the network with its preprocessing, which an example tensor says nothing "
                "about; give the network's zoo.artefact.card.Input instead, or the goal macs or params"
            )
    ready = _Ready(copy.deepcopy(model).eval(), spec, config, images)
    if not isinstance(spec, torch.Tensor) and goal == "latency_ms":
        return _within_latency(ready, spec, value)
    try:
        pruned, done = _within(ready, goal, value, ready.blocks(goal, value))
    except OutOfReachError as error:
        unit = {"macs": "multiply-accumulates", "params": "parameters"}[goal]
        kept = ready.structure.kept
        why = f" ({len(kept)} layers stay whole, first {kept[0].layer}: {kept[0].reason})" if kept else ""
        raise UsageError(
            f"the narrowest layers still leave {error.share:.0%} of the {unit}, {value:.0%} is out of reach{why}; "
            f"raise prune.{goal} or lower prune.round_to ({config.round_to})"
        ) from error
    _check_promise(model, done, goal, value)
    return pruned, done


def parts_for(structure: Structure, config: PruneConfig) -> list[Part]:
    """The parts that a configuration prunes.

    Raises:
        ArtefactError: there is none.
    """
    parts = [part for part in structure.parts if config.head_dims or part.kind != "head dimension"]
    if not parts:
        raise ArtefactError(
            f"{type(structure.model).__name__} has no layer whose channels could be pruned apart from its outputs; "
            "export it unpruned (pocketzoo export)"
        )
    return parts


class _Ready:
    """A network with its couplings, costs and scores: what every candidate of one step is cut from."""

    def __init__(
        self,
        model: nn.Module,
        spec: Input | torch.Tensor,
        config: PruneConfig,
        images: DecodedImages | None,
        whole: dict[_Name, int] | None = None,
    ) -> None:
        self.spec, self.config, self.images = spec, config, images
        self.structure = Structure(model, spec, embedding=config.embedding)
        self.parts = parts_for(self.structure, config)
        self.costs = Costs(self.structure, spec, self.parts)
        self.names = [(part.name, part.kind) for part in self.parts]
        self.whole = whole or {name: len(part.units) for name, part in zip(self.names, self.parts, strict=True)}
        found = scores(self.structure, self.parts, config.importance, images=images, seed=config.seed)
        _check_finite(model, config.importance, self.parts, found)
        found = comparable(found, config.importance, self._prices())
        least = 1 - config.most if config.scope == "global" else 0.0
        self.ladders = [
            ladder(part, values, round_to=config.round_to, share=least, whole=self.whole[name])
            for name, part, values in zip(self.names, self.parts, found, strict=True)
        ]

    def _prices(self) -> list[float]:
        """Share of what the goal counts that the first unit to go from each part saves."""
        goal = "params" if self.config.goal[0] == "params" else "macs"
        whole = np.array([len(part.units) for part in self.parts])
        saved = 1 - self.costs.of(goal, whole - np.eye(len(whole))) / self.costs.whole[goal]
        return list(saved.clip(min=np.finfo(np.float64).eps))

    def blocks(self, goal: str, share: float) -> list[Part]:
        """The residual blocks that go, so that a network of `share` of the cost has the smallest loss."""
        if self.config.depth == "none":
            return []
        if self.images is None:
            note("every block stays: the loss, which decides that, takes labelled images and the importance taylor")
            return []
        most, found = self.costs.whole[goal] * share, residual_blocks(self.structure, shape_of(self.spec))
        prices = {block: price for block in found if (price := self.price(goal, block)) > 0}
        return chosen_blocks(
            self.structure.model, prices, self.images, lambda dropped: self.cut(goal, most, dropped)[0]
        )

    def price(self, goal: str, block: Part) -> float:
        """Share of what the goal counts that goes with a block alone."""
        widths = [[len(part.units) for part in self.parts]]
        return 1 - float(self.costs.without([block]).of(goal, widths)[0]) / self.costs.whole[goal]

    def cut(self, goal: str, most: float, dropped: Sequence[Part] = ()) -> tuple[nn.Module, dict[_Name, int]]:
        """A copy without some blocks that costs at most `most`, and how many units of each part it has left."""
        left = choose(self.ladders, self.costs.without(dropped), goal, most, scope=self.config.scope)
        structure = self.structure.copy()
        for part, rungs, count in zip(self.parts, self.ladders, left, strict=True):
            if doomed := rungs.doomed(count):
                structure.remove(part, doomed)
        structure.finish()
        for block in dropped:
            structure.remove(block, [0])
        return structure.model, dict(zip(self.names, left, strict=True))

    def alone(self, left: dict[_Name, int]) -> dict[_Name, float]:
        """Share of the multiply-accumulates that goes with each part's units alone."""
        found = {}
        for index, name in enumerate(self.names):
            widths = [len(part.units) for part in self.parts]
            widths[index] = left[name]
            found[name] = 1 - float(self.costs.of("macs", [widths])[0]) / self.costs.whole["macs"]
        return found


def _within(ready: _Ready, goal: str, share: float, dropped: Sequence[Part]) -> tuple[nn.Module, Plan]:
    """Prune in steps of equal ratio, scoring anew before each, to at most `share` of the whole network's cost.

    The blocks that are `dropped` go in the first.
    """
    config, costs = ready.config, ready.costs
    step, pruned, left = ready, ready.structure.model, ready.whole
    for number in range(1, config.steps + 1):
        if number > 1:
            step = _Ready(pruned, ready.spec, config, ready.images, ready.whole)
        try:
            most = costs.whole[goal] * share ** (number / config.steps)
            pruned, left = step.cut(goal, most, dropped if number == 1 else ())
        except OutOfReachError as error:
            raise OutOfReachError(error.share * step.costs.whole[goal] / costs.whole[goal]) from error
    # A part of one unit cannot lose any, so that a later step does not know it.
    left = {name: left.get(name, 1) for name in ready.names}
    alone = ready.alone(left)
    model = ready.structure.model
    gone = tuple(f"{block.name}." for block in dropped)
    try:
        macs = count_macs(pruned, shape_of(ready.spec))
    except (RuntimeError, IndexError) as error:
        raise ArtefactError(
            f"{type(model).__name__} cannot be pruned to these widths: it does not run any more ({error}); "
            "export it unpruned (pocketzoo export)"
        ) from error
    done = Plan(
        importance=config.importance,
        scope=config.scope,
        steps=tuple(
            Step(layer=name[0], unit=name[1], before=ready.whole[name], after=left[name], macs=round(alone[name], 5))
            for name in ready.names
            if left[name] < ready.whole[name] and not name[0].startswith(gone)
        )
        + tuple(
            Step(layer=block.name, unit=block.kind, before=1, after=0, macs=round(ready.price("macs", block), 5))
            for block in dropped
        ),
        kept=ready.structure.kept,
        macs_before=costs.whole["macs"],
        macs_after=macs,
        parameters_before=_parameters(model),
        parameters_after=_parameters(pruned),
        bytes_before=_bytes(model),
        bytes_after=_bytes(pruned),
    )
    return pruned, done


def _check_finite(model: nn.Module, importance: str, parts: Sequence[Part], found: Sequence[torch.Tensor]) -> None:
    for part, values in zip(parts, found, strict=True):
        if not values.isfinite().all():
            raise ArtefactError(
                f"{type(model).__name__}: the importance {importance} of {part.name} is no number, "
                + (
                    "so its gradients over the images are not finite; use --importance l2"
                    if importance == "taylor"
                    else "so its weights are not finite; train it again, with a smaller learning rate"
                )
            )


def _check_promise(model: nn.Module, done: Plan, goal: str, share: float) -> None:
    before, after, unit = {
        "macs": (done.macs_before, done.macs_after, "multiply-accumulates"),
        "params": (done.parameters_before, done.parameters_after, "parameters"),
    }[goal]
    if after > before * share:
        raise ArtefactError(
            f"{type(model).__name__} costs more than its layers' couplings say: {after / before:.2%} of the {unit} "
            f"stay, at most {share:.2%} were promised; ask for less (--{goal}), or export it unpruned "
            "(pocketzoo export)"
        )


def _within_latency(ready: _Ready, spec: Input, wanted: float) -> tuple[nn.Module, Plan]:
    """Search the share of multiply-accumulates that takes `wanted` milliseconds, exporting and timing each try."""
    whole = network_ms(ready.structure.model, spec)
    note(f"{whole:.2f} ms unpruned")
    if whole <= wanted:
        raise UsageError(
            f"the network takes {whole:.2f} ms already, prune.latency_ms asks for {wanted:g}; ask for less than "
            f"{whole:.2f} ms, or give the goal as a share instead (prune.macs or prune.params)"
        )
    aim = (1 - LATENCY_TOLERANCE / 2) * wanted
    low, high, share = 0.0, 1.0, aim / whole
    before = 1.0, whole
    # At the multiply-accumulates that this latency would take if both went together.
    dropped = ready.blocks("macs", share)
    best: tuple[nn.Module, Plan] | None = None
    nearest = f"the nearest is {whole:.2f} ms unpruned"
    for _ in range(_TRIES):
        narrowest = False
        try:
            pruned, done = _within(ready, "macs", share, dropped)
        except OutOfReachError as error:
            narrowest = True
            # The narrowest network may be fast enough all the same.
            pruned, done = _within(ready, "macs", error.share * (1 + 1e-6), dropped)
            low = done.ratio
        now = done.ratio, network_ms(pruned, spec)
        said = f"{now[1]:.2f} ms at {now[0]:.1%} of the multiply-accumulates"
        note(said)
        if now[1] <= wanted:
            best, low = (pruned, dataclasses.replace(done, latency_ms=round(now[1], 3))), now[0]
        else:
            high, nearest = now[0], f"{'the narrowest network takes' if narrowest else 'the nearest is'} {said}"
        if (1 - LATENCY_TOLERANCE) * wanted <= now[1] <= wanted or high - low < 0.01:
            break
        guess = _secant(before, now, aim)
        share, before = guess if low < guess < high else (low + high) / 2, now
    if best is None:
        raise UsageError(
            f"{wanted:g} ms are out of reach on this machine, {nearest}; raise prune.latency_ms or "
            f"lower prune.round_to ({ready.config.round_to})"
        )
    return best


def _secant(one: tuple[float, float], other: tuple[float, float], aim: float) -> float:
    """Where the line through two (share, milliseconds) has `aim` milliseconds; NaN if it does not rise."""
    slope = (one[1] - other[1]) / (one[0] - other[0]) if one[0] != other[0] else 0.0
    return other[0] + (aim - other[1]) / slope if slope > 0 else math.nan


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
