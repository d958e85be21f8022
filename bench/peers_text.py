"""Comparisons for people: every variant of a family, and the closing table of all families."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from bench.report_text import environment_text, markdown_table, rich_table

__all__ = ["closing", "details", "markdown", "tables", "times_faster"]

Row = Mapping[str, Any]

_FORMS = {
    ("parent", "pocketzoo"): "parent",
    ("pruned", "pocketzoo"): "pruned",
    ("parent", "pocketzoo-int8"): "INT8",
    ("pruned", "pocketzoo-int8"): "both",
}


def times_faster(row: Row, reference: Row) -> float:
    """How many times faster a row is than another one of its run: the median over the rounds."""
    pairs = zip(reference["round_ms"], row["round_ms"], strict=True)
    return float(statistics.median(slow / fast for slow, fast in pairs))


def details(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of one family's table: a line per network and variant."""
    heading = ["<artefact", "<variant", "p50 ms", "p95 ms", "n", "vs eager", "top-1 %", "same answer %"]
    heading += ["max. logit diff.", "MB", "convert s", "set up s"]
    eager = _find(rows, form="parent", variant="torch")
    return heading, [
        [
            row["artefact"],
            row["variant"],
            f"{row['p50_ms']:.3f}",
            f"{row['p95_ms']:.3f}",
            str(row["n"]),
            _ratio(row, eager),
            _or_dash(row["top1"], lambda share: f"{100 * share:.2f}"),
            _or_dash(row["agreement"], lambda share: f"{100 * share:.2f}"),
            f"{row['difference']:.2g}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['convert_seconds']:.1f}",
            f"{row['setup_seconds']:.1f}",
        ]
        for row in rows
    ]


def closing(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heading and cells of the table family x (parent, pruned, INT8, both).

    Torch eager's and OpenVINO's times are of the same network, OpenVINO's at the same precision; the ratios are to
    torch eager and to OpenVINO's INT8 of the family's parent.
    """
    heading = ["<family", "<form", "<artefact", "top-1 %", "MMACs", "MB", "ms", "torch eager ms", "OpenVINO ms"]
    heading += ["vs eager", "vs OpenVINO INT8"]
    cells = []
    for family in dict.fromkeys(row["family"] for row in rows):
        members = [row for row in rows if row["family"] == family]
        eager, rival = (_find(members, form="parent", variant=name) for name in ("torch", "openvino-int8"))
        for (form, variant), title in _FORMS.items():
            for row in (row for row in members if (row["form"], row["variant"]) == (form, variant)):
                openvino = "openvino-int8" if row["precision"] == "int8" else "openvino"
                same = {"artefact": row["artefact"]}
                cells.append(
                    [
                        family,
                        title,
                        row["artefact"],
                        _or_dash(row["top1"], lambda share: f"{100 * share:.2f}"),
                        f"{row['macs'] / 1e6:.1f}",
                        f"{row['bytes'] / 1e6:.2f}",
                        f"{row['p50_ms']:.3f}",
                        _or_dash(_find(members, variant="torch", **same), _p50),
                        _or_dash(_find(members, variant=openvino, **same), _p50),
                        _ratio(row, eager),
                        _ratio(row, rival),
                    ]
                )
    return heading, cells


def tables(rows: Sequence[Row]) -> list[Table]:
    """What the terminal shows: a table per family, then the closing one."""
    names = dict.fromkeys(row["family"] for row in rows)
    found = [details([row for row in rows if row["family"] == name]) for name in names]
    return [rich_table(*table) for table in (*found, closing(rows))]


def markdown(rows: Sequence[Row], command: str) -> str:
    """The same as a Markdown page, with the command and the environment."""
    first = rows[0]
    counted = {
        f"{row['pictures']} images of {row['dataset']}" + (f", split `{row['split']}`" if row["split"] else "")
        for row in rows
        if row["pictures"]
    }
    facts = [
        f"command: `{command}`",
        f"latency: batch {first['batch']}, threads {first['threads']}, {first['rounds']} processes per variant that "
        f"take turns within a family, {first['warmup']} uncounted inferences each; ms are medians over all inferences, "
        "ratios medians over the rounds",
        "ratios: times faster than torch eager and OpenVINO INT8 of the family's unpruned network; torch eager's and "
        "OpenVINO's ms are of the row's network, OpenVINO's at the row's precision",
        f"accuracy and agreement: n = {'; '.join(sorted(counted)) or 'not measured'}",
        f"environment: {environment_text(first['environment'])}",
        f"time: {first['time']}, runs {', '.join(dict.fromkeys(row['run'] for row in rows))}",
    ]
    sections = [markdown_table(*closing(rows))]
    for family in dict.fromkeys(row["family"] for row in rows):
        sections += [f"## {family}", markdown_table(*details([row for row in rows if row["family"] == family]))]
    return "\n\n".join(["# Comparison", "\n".join(f"- {fact}" for fact in facts), *sections]) + "\n"


def _find(rows: Sequence[Row], **wanted: Any) -> Row | None:
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def _p50(row: Row) -> str:
    return f"{row['p50_ms']:.3f}"


def _ratio(row: Row, reference: Row | None) -> str:
    return "-" if reference is None else f"{times_faster(row, reference):.2f}x"


def _or_dash(value: Any, show: Callable[[Any], str]) -> str:
    return "-" if value is None else show(value)
