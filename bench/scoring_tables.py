"""Tables of bulk scoring, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zoo.artefact.environment import environment_text
from zoo.base.tables import markdown_table

__all__ = ["listing", "speed"]

_Row = Mapping[str, Any]


def speed(rows: Sequence[_Row]) -> str:
    """A line per artefact: images per second of scoring and of the loops, and the share of the round's fastest loop."""
    ways = list(dict.fromkeys(way for row in rows for way in row["references"]))
    cells = [
        [
            f"{row['artefact']}/{row['file']}",
            row.get("source") or "-",
            f"{row['n']:,}",
            f"{row['workers']}",
            f"{row['images_per_s']:,.0f}",
            *(f"{row['references'][way]:,.0f}" for way in ways),
            _share(row),
            f"{row['peak_mb']:.0f}",
            f"{row['worker_peak_mb']:.0f}",
        ]
        for row in rows
    ]
    heading = ["<artefact", "<images", "n", "workers", "images/s", *ways, "% of fastest (95 % CI)", "MB", "MB a worker"]
    return f"{markdown_table(heading, cells)}\n\n{_machine(rows)}"


def listing(rows: Sequence[_Row]) -> str:
    """A line per artefact: seconds until the first images were scored, and memory when listing began and ended."""
    cells = [
        [
            f"{row['artefact']}/{row['file']}",
            f"{row['names']:,}",
            f"{row['first_seconds']:.1f}",
            f"{row['listed_seconds']:.0f}",
            f"{row['n']:,}",
            f"{row['peak_mb'][0]:.0f}",
            f"{row['peak_mb'][1]:.0f}",
            f"{row['peak_mb'][-1]:.0f}",
        ]
        for row in rows
    ]
    memory = ["MB at the first", "after a tenth", "after all"]
    heading = ["<artefact", "names", "first image s", "all listed s", "scored by then", *memory]
    return f"{markdown_table(heading, cells)}\n\n{_machine(rows)}"


def _share(row: _Row) -> str:
    share = f"{100 * row['ratio']:.1f}"
    return (
        share if row["ratio_low"] is None else f"{share} ({100 * row['ratio_low']:.1f}-{100 * row['ratio_high']:.1f})"
    )


def _machine(rows: Sequence[_Row]) -> str:
    loads = [row["load_average"] for row in rows if row.get("load_average") is not None]
    busy = (
        f"; load average {' to '.join(dict.fromkeys(f'{load:.1f}' for load in (min(loads), max(loads))))}"
        if loads
        else ""
    )
    return environment_text(rows[-1]["environment"]) + busy
