"""The report's diagrams as PNG files, narrow enough for a telephone: learning curves, reliability, confusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.report.history import Curve
from bench.report.quality import Calibration
from zoo.base.figures import figure_png
from zoo.explain.panels import NEUTRAL, RIGHT, WRONG
from zoo.explain.predictions.confusion import Counts, draw_confusion, figure_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_curve", "draw_reliability", "draw_report_confusion"]

_FONT = 9


def draw_curve(curve: Curve) -> tuple[bytes, bytes]:
    """Loss per epoch, and accuracy per epoch, with the kept epoch marked: two PNG files."""
    from matplotlib.ticker import MaxNLocator

    figures = (_figure(4.2, 3.1), _figure(4.2, 3.1))
    losses, accuracies = (figure.add_subplot() for figure in figures)
    epochs = [row["epoch"] for row in curve.epochs]
    marker = "o" if len(epochs) < 30 else ""
    for name, title, colour in (("loss", "training", NEUTRAL), ("validation_loss", "validation", RIGHT)):
        _line(losses, epochs, [row[name] for row in curve.epochs], label=title, color=colour, marker=marker)
    shares = [None if row["validation_top1"] is None else 100 * row["validation_top1"] for row in curve.epochs]
    _line(accuracies, epochs, shares, label="validation", color=RIGHT, marker=marker)
    for place, title in ((losses, "loss"), (accuracies, "top-1 accuracy, %")):
        place.set_title(title, fontsize=_FONT + 1, loc="left")
        place.set_xlabel("epoch", fontsize=_FONT)
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
        if curve.best_epoch:
            place.axvline(curve.best_epoch, color=WRONG, linestyle="--", linewidth=1.2, label="kept epoch")
        _plain(place)
        place.legend(fontsize=_FONT - 1, frameon=False)
    return figure_png(figures[0]), figure_png(figures[1])


def draw_reliability(calibration: Calibration, title: str) -> bytes:
    """A reliability diagram (Guo et al. 2017, figure 4) as a PNG file.

    Below it, how many images each bin counts, on a logarithmic scale.
    """
    figure = _figure(4.2, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _reliability(upper, calibration)
    upper.set_title(f"{title}, error {100 * calibration.error:.2f}%", fontsize=_FONT + 1, loc="left")
    upper.set_ylabel("accuracy", fontsize=_FONT)
    upper.legend(fontsize=_FONT - 1, frameon=False, loc="upper left")
    _counts(lower, calibration)
    lower.set_ylabel("images", fontsize=_FONT)
    return figure_png(figure)


def draw_report_confusion(counts: Counts, labels: Sequence[str]) -> bytes:
    """The confusion matrix [K, K] as a PNG file."""
    figure = _figure(*figure_size(counts))
    draw_confusion(figure.add_subplot(), counts, labels)
    return figure_png(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _line(place: Axes, epochs: Sequence[float | None], values: Sequence[float | None], **style: Any) -> None:
    place.plot(
        np.array(epochs, dtype=np.float64), np.array(values, dtype=np.float64), markersize=3, linewidth=1.5, **style
    )


def _plain(place: Axes) -> None:
    place.tick_params(labelsize=_FONT - 1)
    place.grid(alpha=0.25)
    for side in ("top", "right"):
        place.spines[side].set_visible(False)


def _reliability(place: Axes, calibration: Calibration) -> None:
    place.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":", linewidth=1.2, label="perfectly calibrated")
    for number, found in enumerate(entry for entry in calibration.bins if entry.n):
        if found.accuracy is None or found.confidence is None:
            continue
        middle, width = (found.low + found.high) / 2, found.high - found.low
        first = number == 0
        place.bar(
            middle, found.accuracy, width * 0.94, color=RIGHT, alpha=0.5, label="accuracy" if first else "_accuracy"
        )
        place.bar(
            middle,
            found.confidence - found.accuracy,
            width * 0.94,
            bottom=found.accuracy,
            facecolor="none",
            hatch="///",
            edgecolor=WRONG,
            linewidth=0.8,
            label="gap to the confidence" if first else "_gap",
        )
    place.set_xlim(0, 1)
    place.set_ylim(0, 1.02)
    _plain(place)


def _counts(place: Axes, calibration: Calibration) -> None:
    for found in calibration.bins:
        place.bar((found.low + found.high) / 2, found.n, (found.high - found.low) * 0.94, color=NEUTRAL, alpha=0.7)
    place.set_yscale("symlog", linthresh=1)
    most = max(found.n for found in calibration.bins)
    ticks = [value for value in (1, 10, 100, 1_000, 10_000, 100_000) if value <= most]
    place.set_yticks(ticks, [f"{value:,}" for value in ticks])
    place.minorticks_off()
    place.set_ylim(0, 3 * most)
    place.set_xlabel("confidence", fontsize=_FONT)
    _plain(place)
