"""A report for people (tables on a terminal, Markdown) and for scripts (JSON)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from bench.report import Comparison, Line, Report, name_of
from zoo.evaluate import CALIBRATION_BINS

__all__ = ["document", "environment_text", "markdown", "markdown_table", "rich_table", "tables"]

_Cells = list[list[str]]


def tables(report: Report) -> list[Table]:
    """What the terminal shows: the files, the comparisons, the labels that lost most."""
    return [rich_table(heading, rows) for heading, rows in _sections(report) if rows]


def markdown(report: Report) -> str:
    """The report as a Markdown page; every table says how many images it counts and where it was timed."""
    pictures = report.pictures
    counted = f"{len(pictures.samples):,} images of {pictures.name}" + (
        f", split `{pictures.split}`" if pictures.split else ", without labels"
    )
    latency = report.latency
    digest = f" (SHA-256 {pictures.dataset.digest[:12]})" if pictures.dataset else ""
    facts = [
        f"command: `{report.command}`",
        f"images: n = {counted}{digest}; the same for every file",
        f"latency: one image, {latency.rounds} processes per file that take turns, {latency.seconds:g} s each after "
        f"{latency.warmup} uncounted inferences, one session alive at a time; ratios are medians over the rounds",
        f"environment: {environment_text(report.environment)}",
        f"time: {report.time}, run {report.run}",
    ]
    sections = [markdown_table(heading, rows) for heading, rows in _sections(report) if rows]
    parts = [f"# {report.artefact}", "\n".join(f"- {fact}" for fact in facts), *sections, *report.remarks, _METHOD]
    return "\n\n".join(parts) + "\n"


def document(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    pictures = report.pictures
    return {
        "artefact": report.artefact,
        "command": report.command,
        "run": report.run,
        "time": report.time,
        "environment": dict(report.environment),
        "dataset": pictures.name,
        "dataset_digest": pictures.dataset.digest if pictures.dataset else None,
        "split": pictures.split or None,
        "n": len(pictures.samples),
        "latency": dataclasses.asdict(report.latency),
        "remarks": list(report.remarks),
        "files": [_line_values(line) for line in report.lines],
        "comparisons": [_comparison_values(comparison) for comparison in report.comparisons],
    }


def environment_text(found: Any) -> str:
    """A line about the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    flags = ", ".join(found["flags"]) or "no known vector extensions"
    return (
        f"{found['cpu']} ({flags}), {found['cores']} cores, {found['system']}, {found['provider']}; {versions}; "
        f"commit {found['commit']}"
    )


def rich_table(heading: Sequence[str], rows: _Cells) -> Table:
    """A table for the terminal; text columns are marked by a leading "<"."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in heading:
        table.add_column(name.removeprefix("<"), justify="left" if name.startswith("<") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(heading: Sequence[str], rows: _Cells) -> str:
    """The same as Markdown."""
    lines = [[name.removeprefix("<") for name in heading]]
    lines.append(["---" if name.startswith("<") else "---:" for name in heading])
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _sections(report: Report) -> Iterator[tuple[list[str], _Cells]]:
    threads = list(report.lines[0].timings)
    labelled = report.pictures.dataset is not None
    files = ["<file", *(["top-1 % (95 % CI)", "calib. err. %"] if labelled else [])]
    files += ["MMACs", "M params", "MB", *(f"p50 / p95 ms, {_threads(count)}" for count in threads)]
    yield files, [_line_cells(line) for line in report.lines]
    against = ["<file", "<against", *(["points (95 % CI)", "p"] if labelled else []), "same answer %"]
    against += [f"faster, {_threads(count)}" for count in threads]
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


def _threads(count: int) -> str:
    return f"{count} thr."


def _line_cells(line: Line) -> list[str]:
    metrics, inform = line.metrics, line.card.inform
    cells = [name_of(line.path)]
    if metrics and line.calibration_error is not None:
        cells += [f"{100 * metrics.top1:.2f} ({100 * metrics.low:.1f} to {100 * metrics.high:.1f})"]
        cells += [f"{100 * line.calibration_error:.2f}"]
    cells += [f"{inform.macs / 1e6:.1f}", f"{inform.parameters / 1e6:.2f}", f"{line.path.stat().st_size / 1e6:.2f}"]
    return cells + [f"{timing.p50_ms:.3f} / {timing.p95_ms:.3f}" for timing in line.timings.values()]


def _comparison_cells(comparison: Comparison) -> list[str]:
    paired = comparison.paired
    cells = [name_of(comparison.path), name_of(comparison.reference)]
    if paired:
        cells += [f"{paired.points:+.2f} ({paired.low:+.2f} to {paired.high:+.2f})", f"{paired.p:.2g}"]
    return [*cells, f"{100 * comparison.agreement:.2f}", *(f"{speed:.2f}x" for speed in comparison.speed.values())]


def _line_values(line: Line) -> dict[str, Any]:
    inform = line.card.inform
    return {
        "artefact": line.path.parent.name,
        "file": line.path.name,
        "digest": line.digest,
        "precision": inform.precision,
        "metrics": dataclasses.asdict(line.metrics) if line.metrics else None,
        "calibration_error": line.calibration_error,
        "macs": inform.macs,
        "parameters": inform.parameters,
        "bytes": line.path.stat().st_size,
        "latency": [{"threads": threads, **dataclasses.asdict(timing)} for threads, timing in line.timings.items()],
    }


def _comparison_values(comparison: Comparison) -> dict[str, Any]:
    return {
        "file": name_of(comparison.path),
        "against": name_of(comparison.reference),
        "relation": comparison.relation,
        "n": comparison.n,
        "agreement": comparison.agreement,
        "paired": dataclasses.asdict(comparison.paired) if comparison.paired else None,
        "worst": [dataclasses.asdict(loss) for loss in comparison.worst],
        "speed": [{"threads": threads, "times": times} for threads, times in comparison.speed.items()],
    }


_METHOD = f"""\
Top-1 has its Wilson 95 % interval. Points are the difference of two accuracies on the same images, with the interval of
Agresti & Min 2005 (Statistics in Medicine 24:729) and p of McNemar's exact test. The calibration error is the expected
one of the top answer, {CALIBRATION_BINS} bins (Guo et al. 2017). MACs and parameters are the card's, MB the file's. Of
many classes the worst looks bad by chance alone where it has few images."""
