"""The rows of a load measurement as a table and sentences, for people at a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from zoo.base.tables import rich_table

__all__ = ["facts", "render"]

_HEADINGS = ("<scenario", "<metric", "value", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "max ms", "n", "seconds")
_QUERIES = {"single-stream": "24,576", "multi-stream": "270,336", "offline": "24,576", "server": "270,336"}
"""That MLPerf wants at least without early stopping (inference rules, "Scenarios"; offline: samples of its query)."""


def render(rows: Sequence[dict[str, Any]]) -> Table:
    """A table for people."""
    cells = []
    for row in rows:
        marks = [row[name] for name in ("p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "max_ms")]
        latencies = ["-" if mark is None else f"{mark:.2f}" for mark in marks]
        value = f"{row['value']:.2f} {row['unit']}"
        cells.append([row["scenario"], row["metric"], value, *latencies, f"{row['n']:,}", f"{row['seconds']:.1f}"])
    return rich_table(_HEADINGS, cells)


def facts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the table has no column for, as sentences."""
    if not rows:
        return []
    first = rows[0]
    found = [
        f"{first['model']} (version {first['version']}) at {first['url']}; images sent in turn: "
        f"{first['images']['count']}; "
        f"the load came from {first['environment']['cpu']}, {first['environment']['cores']} cores"
    ]
    for row in rows:
        if not row["valid"]:
            counts = {**row["status"], **row["errors"]}
            told = ", ".join(f"{count} x {name}" for name, count in counts.items())
            found.append(f"{row['scenario']}: NOT VALID, not everything was answered with status 200: {told}")
        if row["scenario"] == "server":
            found.append(_searched(row))
        if row["scenario"] == "offline":
            found.append(f"offline: latencies are of single requests, {row['settings']['connections']} at a time")
    found.append("not MLPerf results: MLPerf runs at least 600 s a scenario, and " + _missing(rows))
    return found


def _searched(row: dict[str, Any]) -> str:
    steps = row["detail"]["steps"]
    refuted = sum(step["confirming"] and not step["holds"] for step in steps)
    again = f" (a run of full length refuted {refuted} higher)" if refuted else ""
    top = ""
    if row["value"] > 0.98 * row["detail"]["highest_tried"]:
        top = "; it is the highest that was tried, the server may hold more: measure longer"
    return (
        f"server: p99 {row['p99_ms']:.2f} ms within the bound of {row['settings']['p99_ms']:g} ms at "
        f"{row['value']:.1f} Poisson arrivals/s, confirmed by a run of {row['seconds']:.1f} s{again}; "
        f"{len(steps)} runs{top}"
    )


def _missing(rows: Sequence[dict[str, Any]]) -> str:
    few = [f"{row['scenario']} {_QUERIES[row['scenario']]} queries (here {row['n']:,})" for row in rows]
    return ", ".join(few)
