"""The rows of a comparison of the server as tables: for people at a terminal, and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from zoo.artefact.environment import environment_text
from zoo.base.tables import markdown_table, rich_table

__all__ = ["facts", "markdown", "render"]

_HEADINGS = ("<way in", "<load", "images/s", "% of in-process", "p50 ms", "p99 ms")


def render(rows: Sequence[dict[str, Any]]) -> Table:
    """A table for people."""
    return rich_table(_HEADINGS, [_cells(row) for row in rows])


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The same in Markdown: of each file a table, with its facts as a list below."""
    files = {(row["artefact"], row["file"]): row for row in rows}
    parts = []
    for (artefact, file), row in files.items():
        own = [other for other in rows if (other["artefact"], other["file"]) == (artefact, file)]
        parts += [
            f"{artefact}/{file}, {row['image']['name']} ({row['image']['bytes'] / 1e3:.0f} kB); "
            f"{environment_text(row['environment'])}:",
            markdown_table(_HEADINGS, [_cells(other) for other in own]),
            "\n".join(f"- {fact}" for fact in facts(own)),
        ]
    return "\n\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    load = f"{row['connections']} connections" if row["load"] == "closed loop" else row["load"]
    return [
        row["way"],
        load.replace("1 connections", "1 connection") if load.startswith("1 ") else load,
        f"{row['images_per_s']:.1f}",
        "-" if row["ratio"] is None else f"{100 * row['ratio']:.1f}",
        f"{row['p50_ms']:.2f}",
        f"{row['p99_ms']:.2f}",
    ]


def facts(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What the table has no column for, as sentences."""
    found = []
    for row in rows:
        detail = row["detail"]
        name = f"{row['way']}, {row['load']}"
        if "ready_seconds" in detail:
            found.append(
                f"start to ready {detail['ready_seconds']:.2f} s; resident {detail['rss_mb']:.0f} MB, "
                f"{detail['rss_after_mb']:.0f} MB after the closed loops"
            )
        if "added_p50_ms" in detail:
            found.append(f"{name}, 1 connection: {detail['added_p50_ms']:+.2f} ms to the p50 of one call in process")
        if "p99_of_service" in detail:
            found.append(f"{name}: p99 is {detail['p99_of_service']:.2f} x the service time, {_counts(row)}")
        if unanswered := detail.get("unanswered"):
            found.append(f"{name}: NOT VALID, {unanswered} requests had no answer with status 200: {_counts(row)}")
        if "recovery_seconds" in detail:
            found.append(_overload(row))
    return found


def _counts(row: dict[str, Any]) -> str:
    parts = [f"{count} x {status}" for status, count in {**row["status"], **row["errors"]}.items()]
    return ", ".join(parts)


def _overload(row: dict[str, Any]) -> str:
    detail, memory = row["detail"], row["detail"]["rss_mb"]
    recovery, refused = detail["recovery_seconds"], detail["refused_ms"]
    refusals = "no refusals"
    if refused:
        refusals = (
            f"refusals within {refused['p50']:.2f} ms (p50) and {refused['p99']:.2f} ms (p99), "
            f"{detail['retry_after']} with Retry-After"
        )
    return (
        f"{row['load']}: {100 * detail['of_peak']:.1f} % of the peak; {refusals}; resident "
        f"{memory['before']:.0f} MB before, {memory['highest']:.0f} at most, {memory['after']:.0f} after; "
        + (f"recovered after {recovery:.2f} s" if recovery is not None else "not recovered")
    )
