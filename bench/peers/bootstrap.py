"""How sure medians and ratios of repeated measurements are: bootstrap intervals over the rounds.

The unit that is drawn again is the round, a process of its own: inferences of one process share its memory layout and
the machine's state, so that drawing single ones would promise too narrow an interval (Davison & Hinkley, Bootstrap
Methods and their Application, 1997, section 3.8; Kalibera & Jones, Rigorous Benchmarking in Reasonable Time, ISMM
2013). Of five rounds the interval of a median comes close to their range, which holds the true median 15 times in 16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

__all__ = ["Ratio", "median_interval", "ratio"]

_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How many times as fast as something else, measured in the same rounds."""

    value: float
    """Median over the rounds of the ratio of both medians."""
    low: float | None
    high: float | None
    """95 % interval; None of a single round."""


def median_interval(rounds: Sequence[Sequence[float]]) -> tuple[float, float] | None:
    """95 % interval of the median over all durations: rounds are drawn with replacement, each with all it measured.

    Args:
        rounds: durations by round.

    Returns:
        Low and high, always the same for the same durations; None of a single round, which says nothing of others.
    """
    turns = [np.asarray(turn) for turn in rounds]
    return _interval(
        np.arange(len(turns), dtype=np.float64),
        lambda drawn: float(np.median(np.concatenate([turns[int(index)] for index in drawn]))),
    )


def ratio(reference_ms: Sequence[float], own_ms: Sequence[float]) -> Ratio:
    """How many times as fast as a reference: a ratio per round, so that a busy machine slows both of its terms.

    Args:
        reference_ms: the reference's median of each round.
        own_ms: the medians of the same rounds.
    """
    found = np.array([slow / fast for slow, fast in zip(reference_ms, own_ms, strict=True)])
    low, high = _interval(found, lambda drawn: float(np.median(drawn))) or (None, None)
    return Ratio(value=float(np.median(found)), low=low, high=high)


def _interval(
    rounds: npt.NDArray[np.float64], statistic: Callable[[npt.NDArray[np.float64]], float]
) -> tuple[float, float] | None:
    if len(rounds) < 2:
        return None
    done = bootstrap(
        (rounds,),
        statistic,
        n_resamples=_RESAMPLES,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return float(done.confidence_interval.low), float(done.confidence_interval.high)
