"""What the rows of a comparison say of time and memory, from what its processes measured."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.runtimes.baselines import REFERENCE
from zoo.artefact.clock import summarise
from zoo.base.statistics.intervals import ratio

__all__ = ["measured", "with_ratios"]


def measured(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Times (zoo.artefact.clock.Timing), one upon another and paced; how a variant begins; the most memory it held.

    How it begins are medians over the rounds.

    Args:
        turns: what each process measured, by round: see bench.runtimes.measuring_process.timed.
    """
    paced = summarise([turn["paced_ms"] for turn in turns])
    return {
        **dataclasses.asdict(summarise([turn["samples_ms"] for turn in turns])),
        "paced_p50_ms": paced.p50_ms,
        "paced_low_ms": paced.low_ms,
        "paced_high_ms": paced.high_ms,
        "paced_p95_ms": paced.p95_ms,
        "paced_round_ms": paced.round_ms,
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
