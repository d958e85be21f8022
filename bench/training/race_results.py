"""What came of a race: accuracy over time as a picture, and a table of who was where when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bench.training.contestants import OURS
from zoo.artefact.environment import environment_text
from zoo.base.figures import save_figure
from zoo.base.tables import markdown_table, rich_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_race", "level_of", "markdown", "moment_of", "reached", "render", "top1_at"]

_Row = Mapping[str, Any]
_COLOURS = {OURS: "#0072b2", "timm": "#d55e00", "fastai": "#009e73"}
"""Ours first; of Okabe and Ito's palette, which colour-blind people tell apart."""
_HEADINGS = (
    "<data",
    "<contestant",
    "epochs",
    "top-1 % (95 %)",
    "at s",
    "best %",
    "% at equal s",
    "s to the peers' best",
)
_MORE = ("images/s", "CPU s", "system %", "peak MB")


def top1_at(row: _Row, seconds: float) -> float | None:
    """Validation top-1 of the last epoch that had ended by then; None: there was none."""
    found = [top1 for ended, top1 in row["curve"] if ended <= seconds]
    return found[-1] if found else None


def reached(row: _Row, level: float) -> float | None:
    """Seconds until an epoch first had at least this top-1; None: none had."""
    return next((seconds for seconds, top1 in row["curve"] if top1 >= level), None)


def moment_of(rows: Sequence[_Row]) -> float:
    """When contestants are compared, in seconds: at the end of the budget, else when the first one was through."""
    minutes = rows[0]["minutes"]
    return 60 * float(minutes) if minutes is not None else min(float(row["curve"][-1][0]) for row in rows)


def level_of(rows: Sequence[_Row]) -> float | None:
    """The best top-1 of any epoch of a peer; None without peers."""
    return max((float(row["best_top1"]) for row in rows if row["contestant"] != OURS), default=None)


def render(rows: Sequence[_Row]) -> Table:
    """A table for people, a line per contestant and round."""
    return rich_table([*_HEADINGS, *_MORE], _lines(rows))


def markdown(rows: Sequence[_Row]) -> str:
    """The same for a document, with the machine, and how busy it was at the start of each."""
    machines = dict.fromkeys(environment_text(row["environment"]) for row in rows)
    loads = sorted(row["load_average"] for row in rows if row["load_average"] is not None)
    busy = f"; load average {loads[0]:.1f} to {loads[-1]:.1f}" if loads else ""
    return f"{markdown_table([*_HEADINGS, *_MORE], _lines(rows))}\n\n" + "; ".join(machines) + busy


def _lines(rows: Sequence[_Row]) -> list[list[str]]:
    lines = []
    for course in _courses(rows).values():
        moment, level = moment_of(course), level_of(course)
        for row in course:
            then = top1_at(row, moment)
            needed = None if level is None else reached(row, level)
            cpu = row["user_seconds"] + row["system_seconds"]
            lines.append(
                [
                    _where(row),
                    row["contestant"],
                    str(row["epochs"]),
                    f"{100 * row['top1']:.1f} ({100 * row['low']:.1f}-{100 * row['high']:.1f})",
                    f"{row['curve'][-1][0]:.0f}",
                    f"{100 * row['best_top1']:.1f}",
                    "-" if then is None else f"{100 * then:.1f} at {moment:.0f}",
                    "-" if needed is None else f"{needed:.0f}",
                    f"{row['images_per_s']:.1f}" if row["images_per_s"] else "-",
                    f"{cpu:.0f}",
                    f"{100 * row['system_seconds'] / cpu:.0f}" if cpu else "-",
                    f"{row['peak_mb']:.0f}",
                ]
            )
    return lines


def draw_race(rows: Sequence[_Row], path: Path) -> None:
    """Write one plot per data set, network and allocator: validation top-1 over seconds, a line per process.

    Args:
        rows: at least one.
        path: of the PNG file.

    Raises:
        ArtefactError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    courses = _courses(rows)
    figure = Figure(figsize=(7 * len(courses), 5.5), layout="constrained")
    for axes, course in zip(figure.subplots(1, len(courses), squeeze=False)[0], courses.values(), strict=True):
        _draw(axes, course)
    save_figure(figure, path)


def _draw(axes: Axes, rows: Sequence[_Row]) -> None:
    for row in rows:
        seconds, top1 = zip(*row["curve"], strict=True)
        percent = [100 * value for value in top1]
        name = row["contestant"]
        axes.plot(seconds, percent, "o-", color=_COLOURS[name], linewidth=1.6, markersize=4)
        last = percent[-1]
        error = [[last - 100 * row["low"]], [100 * row["high"] - last]]
        axes.errorbar(seconds[-1], last, yerr=error, color=_COLOURS[name], elinewidth=0.8, capsize=3)
        if row["round"] == min(other["round"] for other in rows if other["contestant"] == name):
            axes.annotate(
                name, (seconds[-1], last), (8, 0), textcoords="offset points", va="center", color=_COLOURS[name]
            )
    if rows[0]["minutes"] is not None:
        axes.axvline(60 * rows[0]["minutes"], color="#444444", linestyle="--", linewidth=1)
    first = rows[0]
    axes.set(
        title=f"{_where(first)}, {first['model']}, n = {first['validation_n']}",
        xlabel=f"seconds since the process began, {first['threads']} threads, allocator {first['allocator']}",
        ylabel="validation top-1 (%), last epoch with its 95 % interval",
    )
    # Room for the names on the right.
    axes.set_xlim(0, 1.2 * max(row["curve"][-1][0] for row in rows))
    axes.grid(alpha=0.25)


def _courses(rows: Sequence[_Row]) -> dict[tuple[Any, ...], list[_Row]]:
    """The rows that may be compared with each other; of an allocator that is not the same, times are not."""
    found: dict[tuple[Any, ...], list[_Row]] = {}
    for row in sorted(rows, key=lambda row: list(_COLOURS).index(row["contestant"])):
        found.setdefault((row["data"], row["model"], row["image_size"], row["allocator"]), []).append(row)
    return found


def _where(row: _Row) -> str:
    return f"{row['data']}, {row['image_size']} px" + (", plain allocator" if row["allocator"] == "plain" else "")
