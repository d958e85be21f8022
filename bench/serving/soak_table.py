"""What the server answered while faults happened, as a table; the rows are those of tests/soak/run.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.base.tables import markdown_table

__all__ = ["table"]

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    cells = [
        [
            row["fault"],
            f"{row['n']}",
            ", ".join(f"{count} x {status}" for status, count in row["status"].items()),
            "yes" if row["ok"] else "NO",
            "; ".join(row["detail"]),
        ]
        for row in rows
    ]
    return markdown_table(["<fault", "requests", "<answers", "<survived", "<detail"], cells)
