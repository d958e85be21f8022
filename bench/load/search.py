"""The highest rate whose 99th percentile stays within a bound, found by bisection and confirmed by longer runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Search", "Step", "Trial", "search"]

_STEPS = 7
_LOWEST = 1 / 16
"""Part of the highest rate below which nothing is tried: requests hardly wait for each other there any more."""
_PARTS = (1.0, 0.95, 0.9, 0.8, 0.6, 0.4)
"""Of the rate that the bisection found, confirmed in turn until one holds."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run at one rate."""

    rate: float
    """Requests per second that were due."""
    holds: bool
    """Whether everything was answered with status 200, and the 99th percentile stays within the bound."""
    p99_ms: float
    confirming: bool = False
    """Whether it ran in full length."""
    found: dict[str, Any] = field(default_factory=dict, repr=False)
    """All that the run said."""


Trial = Callable[[float, int, bool], Step]
"""Rate, number of the run (from 0: its seed), and whether it runs in full length -> what it found."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """All runs of a search, in order."""

    steps: tuple[Step, ...]
    best: Step | None
    """The confirming run that holds; None: no rate does."""


def search(trial: Trial, *, highest: float) -> Search:
    """Bisect between 0 and `highest`, then confirm; a bound that a sixteenth of it misses is given up.

    A rate is refuted by two short runs with different arrivals, as one pause of the machine spoils a short run's 99th
    percentile; that a rate may pass by luck is what the confirming run is for: it has no second chance. Where it
    fails, 95 % of the rate is confirmed instead, then 90, 80, 60 and 40 %.

    Args:
        trial: one run.
        highest: a rate that is more than the server's throughput, requests per second.
    """
    steps: list[Step] = []

    def run(rate: float, confirming: bool) -> Step:
        steps.append(trial(rate, len(steps), confirming))
        return steps[-1]

    low, high = 0.0, highest
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if run(middle, False).holds or run(middle, False).holds:
            low = middle
        else:
            high = middle
            if high <= _LOWEST * highest:
                break
    for part in _PARTS if low else ():
        if (step := run(part * low, True)).holds:
            return Search(steps=tuple(steps), best=step)
    return Search(steps=tuple(steps), best=None)
