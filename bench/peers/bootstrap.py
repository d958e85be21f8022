"""How sure medians and ratios of repeated measurements are: bootstrap intervals over the rounds.

The unit that is drawn again is the round, a process of its own: inferences of one process share its memory layout and
the machine's state, so that drawing single ones would promise too narrow an interval (Davison & Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8; Kalibera & Jones, Rigorous Benchmarking in Reasonable Time, ISMM
2013). Rounds of more inferences do not weigh more.

Of fewer than FEWEST rounds no 95 % interval of their median can be had: the widest that there is, their range, holds
the true median with a probability of 1 - 2 / 2^k of k rounds, 94 % of five (order statistics; David & Nagaraja, Order
Statistics, 2003, section 7.1). It is what is given then, and `sureness` says which of both it is. Of six to eight
rounds of log-normal durations the bootstrap's interval holds the true median 92 to 93 times in 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap

__all__ = ["FEWEST", "Ratio", "median_interval", "ratio", "sureness"]

FEWEST = 6
"""Rounds of which a 95 % interval can be had."""

_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast as something else, measured in the same rounds."""

    value: float
    """Median over the rounds of the ratio of both medians."""
    low: float | None
    high: float | None
    """95 % interval, or of few rounds their range; None of a single round."""


def sureness(rounds: int) -> str:
    """What intervals of so many rounds are: `95 % CI`, or `range`."""
    return "95 % CI" if rounds >= FEWEST else "range"


def median_interval(round_ms: Sequence[float]) -> tuple[float, float] | None:
    """How sure the median of the rounds' medians is: 95 % interval, or of fewer than FEWEST rounds their range.

    Args:
        round_ms: the median of each round.

    Returns:
        Low and high, always the same for the same rounds; None of a single round, which says nothing of others.
    """
    found = np.asarray(round_ms, dtype=np.float64)
    if len(found) < 2:
        return None
    if len(found) < FEWEST:
        return float(found.min()), float(found.max())
    done = bootstrap(
        (found,),
        np.median,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(done.confidence_interval.low), float(done.confidence_interval.high)


def ratio(reference_ms: Sequence[float], own_ms: Sequence[float]) -> Ratio:
    """How many times as fast as a reference: a ratio per round, so that a busy machine slows both of its terms.

    Args:
        reference_ms: the reference's median of each round.
        own_ms: the medians of the same rounds.
    """
    found = [slow / fast for slow, fast in zip(reference_ms, own_ms, strict=True)]
    low, high = median_interval(found) or (None, None)
    return Ratio(value=float(np.median(found)), low=low, high=high)
