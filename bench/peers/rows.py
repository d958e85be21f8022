"""What the rows of a comparison say of time and memory, from what its processes measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.peers.bootstrap import median_interval, ratio
from bench.peers.runtimes import REFERENCE
from zoo.clock import summarise

__all__ = ["starting", "timing", "with_ratios"]


def timing(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Median of the rounds' medians and its interval (bench.peers.bootstrap), and the median of each round.

    A round lasts for a time, so that over all inferences the fast rounds would weigh more. The other percentiles are
    over all inferences: of single rounds they are of too few.

    Args:
        turns: what each process measured, by round: `samples_ms`.
    """
    rounds: list[list[float]] = [turn["samples_ms"] for turn in turns]
    timing = summarise([duration for turn in rounds for duration in turn])
    medians = [summarise(turn).p50_ms for turn in rounds]
    low, high = median_interval(medians) or (None, None)
    return {
        "n": timing.n,
        "p50_ms": round(statistics.median(medians), 4),
        "low_ms": None if low is None else round(low, 4),
        "high_ms": None if high is None else round(high, 4),
        "p95_ms": round(timing.p95_ms, 4),
        "p99_ms": round(timing.p99_ms, 4),
        "round_ms": [round(median, 4) for median in medians],
    }


def starting(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How a variant begins, as medians over the rounds, and the most memory it held.

    Args:
        turns: what each process measured, by round: see bench.peers.worker.timed.
    """
    return {
        "startup_seconds": round(statistics.median(turn["startup_seconds"] for turn in turns), 4),
        "first_ms": round(statistics.median(turn["first_ms"] for turn in turns), 4),
        "peak_mb": max(turn["peak_mb"] for turn in turns),
    }


def with_ratios(rows: Sequence[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    """Adds how many times as fast as ONNX Runtime's defaults on the family's unpruned network each row is.

    Args:
        rows: of one family; its first network's row of ONNX Runtime is among them. Where that network is pruned
            itself, as what it was pruned from is not known, there is no reference and every ratio is None.
        family: name of that network.
    """
    (reference,) = (row for row in rows if (row["artefact"], row["variant"]) == (family, REFERENCE))
    if reference["form"] == "pruned":
        return [row | dict.fromkeys(("reference", "ratio", "ratio_low", "ratio_high")) for row in rows]
    found = []
    for row in rows:
        faster = ratio(reference["round_ms"], row["round_ms"])
        bounds = {"ratio_low": faster.low, "ratio_high": faster.high}
        rounded = {name: None if value is None else round(value, 4) for name, value in bounds.items()}
        found.append(row | {"reference": f"{REFERENCE} {family}", "ratio": round(faster.value, 4)} | rounded)
    return found
