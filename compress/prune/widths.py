"""How many units of each part stay, for a goal: bisection, then giving back what rounding took too much."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from compress.prune.cutting import Part
from compress.prune.macs import Costs

__all__ = ["Ladder", "OutOfReachError", "block_of", "choose", "ladder"]

_UNEVEN = 0.1
"""By how much more than its share a part may keep with the scope `layer`, before rounding. Without a bound, layers that
cost little would come back whole: the wide ones behind a flattened feature map, with most of the parameters."""

_HEAD_DIMENSION = 8
"""Floats in an AVX2 register: the widths of a head that matrix kernels fill."""


class OutOfReachError(Exception):
    """The narrowest layers still cost more than the goal."""

    def __init__(self, share: float) -> None:
        super().__init__(f"{share:.0%}")
        self.share = share
        """What stays, at least."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The units of one part in the order in which they go, and the steps in which they may."""

    order: tuple[int, ...]
    """Indices of the units, least important first."""
    values: tuple[float, ...]
    """Their scores, in this order."""
    block: int
    """Widths are multiples of it, or whole."""
    least: int
    """Units that stay at least."""

    def rounded(self, units: float) -> int:
        """The next width from `units` upwards."""
        return min(len(self.order), max(self.least, math.ceil(units / self.block - 1e-9) * self.block))

    def doomed(self, left: int) -> list[int]:
        """Indices of the units that go if `left` stay."""
        return sorted(self.order[: len(self.order) - left])


def block_of(part: Part, round_to: int) -> int:
    """In how many units at a time a part may shrink.

    Channels and hidden units: so that the width in channels is a multiple of `round_to`. Heads go one at a time: what
    the kernels see is their dimension. A head's dimensions go by 8, or by what divides it.
    """
    if part.kind == "head":
        block = 1
    elif part.kind == "head dimension":
        block = math.gcd(_HEAD_DIMENSION, len(part.units))
    else:
        block = round_to // math.gcd(round_to, len(part.units[0]))
    return math.lcm(block, part.multiple)


def ladder(part: Part, scores: torch.Tensor, *, round_to: int, share: float = 0.0, whole: int | None = None) -> Ladder:
    """Sort the units of a part.

    Args:
        part: the part.
        scores: of its units.
        round_to: see :func:`block_of`.
        share: of the `whole` units, that stays at least.
        whole: number of units before any pruning; default: as now.
    """
    order = torch.argsort(scores, stable=True).tolist()
    block = block_of(part, round_to)
    floor = max(1, math.ceil(share * (whole or len(order)) - 1e-9))
    return Ladder(
        order=tuple(order),
        values=tuple(scores[order].tolist()),
        block=block,
        least=min(len(order), math.ceil(floor / block) * block),
    )


def choose(ladders: Sequence[Ladder], costs: Costs, goal: str, most: float, *, scope: str) -> list[int]:
    """How many units of each part stay: as close below the goal as the blocks allow.

    The share of every part (`layer`), or the rank over all parts (`global`), is bisected first. Rounding up makes the
    cost a staircase whose steps several parts take at once, so that what is left to the goal is then spent on single
    blocks: of the parts with the smallest share left (`layer`), or the most important (`global`).

    Args:
        ladders: of the parts.
        costs: of the parts, in the same order.
        goal: `macs` or `params`.
        most: they cost at most so many.
        scope: `layer` or `global`.

    Raises:
        OutOfReachError: nothing is that narrow.
    """
    widths = _uniform(ladders) if scope == "layer" else _ranked(ladders)
    narrowest = widths(0.0)
    least = float(costs.of(goal, [narrowest])[0])
    if least > most:
        raise OutOfReachError(least / costs.whole[goal])
    low, high, best = 0.0, 1.0, narrowest
    for _ in range(30):
        middle = (low + high) / 2
        found = widths(middle)
        if float(costs.of(goal, [found])[0]) <= most:
            low, best = middle, found
        else:
            high = middle
    caps = widths((1 + _UNEVEN) * low) if scope == "layer" else widths(1.0)
    return _fill(best, caps, ladders, costs, goal, most, scope)


def _uniform(ladders: Sequence[Ladder]) -> Callable[[float], list[int]]:
    return lambda share: [rungs.rounded(share * len(rungs.order)) for rungs in ladders]


def _ranked(ladders: Sequence[Ladder]) -> Callable[[float], list[int]]:
    values = [np.array(rungs.values) for rungs in ladders]
    ranking = np.sort(np.concatenate(values))

    def widths(share: float) -> list[int]:
        place = round((1 - share) * len(ranking))
        threshold = ranking[place] if place < len(ranking) else math.inf
        return [rungs.rounded(int((own >= threshold).sum())) for rungs, own in zip(ladders, values, strict=True)]

    return widths


def _fill(
    left: list[int],
    caps: Sequence[int],
    ladders: Sequence[Ladder],
    costs: Costs,
    goal: str,
    most: float,
    scope: str,
) -> list[int]:
    """Give back single blocks, up to `caps`, until no more fits."""
    left = list(left)

    def worth(found: tuple[int, int]) -> tuple[float, float]:
        index, width = found
        share = left[index] / len(ladders[index].order) if scope == "layer" else 0.0
        return -share, _value(ladders[index], left[index], width)

    while True:
        wider = [(index, rungs.rounded(left[index] + 1)) for index, rungs in enumerate(ladders)]
        wider = [(index, width) for index, width in wider if left[index] < width <= caps[index]]
        candidates = np.array([left] * len(wider)).reshape(len(wider), len(left))
        for row, (index, width) in enumerate(wider):
            candidates[row, index] = width
        fitting = [found for found, cost in zip(wider, costs.of(goal, candidates), strict=True) if cost <= most]
        if not fitting:
            return left
        index, width = max(fitting, key=worth)
        left[index] = width


def _value(rungs: Ladder, left: int, width: int) -> float:
    """Mean score of the units that come back."""
    total = len(rungs.order)
    back = rungs.values[total - width : total - left]
    return sum(back) / len(back)
