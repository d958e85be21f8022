"""What the server survived, as tables: of the rows of tests/soak/run.py and tests/soak/attacks.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.base.tables import markdown_table

__all__ = ["attacks", "faults"]

Row = Mapping[str, Any]


def faults(rows: Sequence[Row]) -> str:
    """A line per fault, as Markdown: what was answered meanwhile, and what else was seen."""
    heading = ["<fault", "requests", "<answers", "<survived", "<detail"]
    cells = [
        [row["fault"], f"{row['n']}", _counted(row["answers"]), _yes(row["ok"]), "; ".join(row["detail"])]
        for row in rows
    ]
    return markdown_table(heading, cells)


def attacks(rows: Sequence[Row]) -> str:
    """A line per attack, as Markdown: what honest clients noticed of it."""
    heading = [
        "<attack",
        "honest requests",
        "failed",
        "p99 alone, ms",
        "p99, ms",
        "times",
        "worker +MB",
        "<attackers got",
        "<ok",
    ]
    cells = [
        [
            row["attack"],
            f"{row['n']}",
            f"{row['failed']}",
            f"{row['p99_alone_ms']:.1f}",
            "" if row["p99_ms"] is None else f"{row['p99_ms']:.1f}",
            f"{row['times']:.1f}",
            f"{row['grew_mb']:.0f}",
            _counted(row["attackers"]),
            _yes(row["ok"]),
        ]
        for row in rows
    ]
    return markdown_table(heading, cells)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {what}" for what, count in sorted(counts.items()))


def _yes(fine: bool) -> str:
    return "yes" if fine else "NO"
