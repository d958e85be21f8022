"""How sure medians and ratios of repeated measurements are: intervals by order statistics, over the rounds.

The unit is the round, a process of its own: inferences of one process share its memory layout and the machine's state,
so that counting single ones would promise too narrow an interval (Kalibera & Jones, Rigorous Benchmarking in Reasonable
Time, ISMM 2013). Rounds of more inferences do not weigh more.

Of fewer than FEWEST rounds no 95 % interval of their median can be had: the widest that there is, their range, holds
the true median with a probability of 1 - 2 / 2^k of k rounds, 94 % of five (David & Nagaraja, Order Statistics, 2003,
section 7.1). It is what is given then, and `sureness` says which of both it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FEWEST", "Ratio", "median_interval", "ratio", "sureness"]

FEWEST = 6
"""Rounds of which a 95 % interval can be had."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast as something else, measured in the same rounds."""

    value: float
    """Median over the rounds of the ratio of both measurements."""
    low: float | None
    high: float | None
    """95 % interval, or of few rounds their range; None of a single round."""


def sureness(rounds: int) -> str:
    """What intervals of so many rounds are: `95 % CI`, or `range`."""
    return "95 % CI" if rounds >= FEWEST else "range"


def median_interval(rounds: Sequence[float]) -> tuple[float, float] | None:
    """How sure the median over rounds is: its 95 % interval, or of fewer than FEWEST rounds their range.

    Returns:
        Low and high, two of the rounds' numbers; None of a single round, which says nothing of others.
    """
    if len(rounds) < 2:
        return None
    if len(rounds) < FEWEST:
        return min(rounds), max(rounds)
    # It takes a second to load, which few rounds and a starting server need not wait for.
    from scipy.stats import quantile_test

    found = quantile_test(rounds, p=0.5).confidence_interval(confidence_level=0.95)
    return float(found.low), float(found.high)


def ratio(over: Sequence[float], under: Sequence[float]) -> Ratio:
    """Of two measurements a ratio per round, so that a busy machine slows both of its terms; their median.

    Args:
        over: one number per round: a reference's milliseconds, say, or one's own images per second.
        under: of the same rounds: one's own milliseconds, or a reference's images per second.
    """
    found = [one / other for one, other in zip(over, under, strict=True)]
    low, high = median_interval(found) or (None, None)
    return Ratio(value=statistics.median(found), low=low, high=high)
