"""A report's tables of compression, for its page and for a terminal, and sentences on how it was measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rich.table import Table

from bench.report.measure import Comparison, Line, Report, name_of
from zoo.base.tables import rich_table
from zoo.training.evaluate import CALIBRATION_BINS

__all__ = ["METHOD", "busy_note", "compression_tables", "tables"]

_Cells = Sequence[Sequence[str]]
_UNEVEN = 2
"""p95 over p50: a network does the same work for each image, so that other work on the machine makes the rest."""


def tables(report: Report) -> list[Table]:
    """What the terminal shows: the files, the comparisons, the labels that lost most."""
    return [rich_table(heading, rows) for heading, rows in compression_tables(report) if rows]


def compression_tables(report: Report) -> Iterator[tuple[list[str], _Cells]]:
    """Headings and cells: the files, the comparisons, the labels that lost most recall."""
    threads = list(report.lines[0].timings)
    labelled = report.pictures.dataset is not None
    files = ["<file", *(["top-1 % (95 % CI)", "calib. err. %"] if labelled else [])]
    files += ["<engine", "MMACs", "M params", "MB", *(f"p50 / p95 ms, {_threads(count)}" for count in threads)]
    yield files, [_line_cells(line) for line in report.lines]
    against = ["<file", "<against", *(["points (95 % CI)", "p"] if labelled else []), "same answer %"]
    against += ["smaller", *(f"faster, {_threads(count)}" for count in threads)]
    yield against, [_comparison_cells(comparison) for comparison in report.comparisons]
    yield (
        ["<file", "<against", "<class that lost recall", "recall %", "n"],
        [
            [
                name_of(comparison.path),
                name_of(comparison.reference),
                loss.label,
                f"{100 * loss.before:.1f} -> {100 * loss.after:.1f}",
                str(loss.n),
            ]
            for comparison in report.comparisons
            for loss in comparison.worst
        ],
    )


def busy_note(report: Report) -> str:
    """Why the times are to be read with care; "": nothing says so."""
    signs = []
    if report.load is not None and report.load > (processors := os.cpu_count() or 1):
        signs.append(f"just before, {report.load:.1f} tasks wanted its {processors} processors (1-minute load average)")
    uneven = [
        f"{name_of(line.path)} at {threads} thread{'s' * (threads > 1)}"
        for line in report.lines
        for threads, timing in line.timings.items()
        if timing.p95_ms > _UNEVEN * timing.p50_ms
    ]
    if uneven:
        signs.append(f"p95 is more than {_UNEVEN} times p50 of {', '.join(uneven)}")
    return f"The machine was busy, so read the times with care: {'; '.join(signs)}." if signs else ""


def _threads(count: int) -> str:
    return f"{count} thr."


def _line_cells(line: Line) -> list[str]:
    metrics, inform = line.metrics, line.card.inform
    cells = [name_of(line.path)]
    if metrics and line.calibration_error is not None:
        cells += [f"{100 * metrics.top1:.2f} ({100 * metrics.low:.1f} to {100 * metrics.high:.1f})"]
        cells += [f"{100 * line.calibration_error:.2f}"]
    cells += [
        line.engine,
        f"{inform.macs / 1e6:.1f}",
        f"{inform.parameters / 1e6:.2f}",
        f"{line.path.stat().st_size / 1e6:.2f}",
    ]
    return cells + [f"{timing.p50_ms:.3f} / {timing.p95_ms:.3f}" for timing in line.timings.values()]


def _comparison_cells(comparison: Comparison) -> list[str]:
    paired = comparison.paired
    cells = [name_of(comparison.path), name_of(comparison.reference)]
    if paired:
        cells += [f"{paired.points:+.2f} ({paired.low:+.2f} to {paired.high:+.2f})", f"{paired.p:.2g}"]
    cells += [f"{100 * comparison.agreement:.2f}", f"{comparison.smaller:.2f}x"]
    return cells + [f"{speed.value:.2f}x" for speed in comparison.speed.values()]


METHOD = f"""\
Top-1 has its Wilson 95 % interval. Points are the difference of two accuracies on the same images, with the interval of
Agresti & Min 2005 (Statistics in Medicine 24:729) and p of McNemar's exact test. The calibration error is the expected
one of the top answer, {CALIBRATION_BINS} bins (Guo et al. 2017). MACs and parameters are the card's, MB the file's. Of
many classes the worst looks bad by chance alone where it has few images."""
