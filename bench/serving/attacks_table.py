"""What honest clients noticed of attacks, as a table; the rows are those of tests/soak/attacks.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.base.tables import markdown_table

__all__ = ["table"]

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
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
            ", ".join(f"{count} x {what}" for what, count in row["attackers"].items()),
            "yes" if row["ok"] else "NO",
        ]
        for row in rows
    ]
    return markdown_table(heading, cells)
