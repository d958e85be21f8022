"""An image of a load measurement: latency against percentile, and the search for the highest rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.load.histogram import Latencies
from zoo.base.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_load"]

_COLOURS = {"single-stream": "#0072b2", "multi-stream": "#e69f00", "offline": "#009e73", "server": "#cc79a7"}
_HOLDS, _MISSES = "#0072b2", "#d55e00"
"""Of Okabe and Ito's palette, which colour-blind people tell apart."""
_MARKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_POINTS = 400


def draw_load(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the rows of one measurement as PNG.

    Left: each scenario's latency in milliseconds against its percentile, on an axis of 1 / (1 - p) as HdrHistogram's
    plots have it, so that the tail has room. Right, if there is a row of the scenario `server`: the p99 of each of its
    runs against the rate, and the bound.
    """
    from matplotlib.figure import Figure

    server = next((row for row in rows if row["scenario"] == "server"), None)
    figure = Figure(figsize=(13 if server else 8, 6), layout="constrained")
    first = rows[0]
    figure.suptitle(f"{first['model']} (version {first['version']}) at {first['url']}", fontsize=11)
    _percentiles(figure.add_subplot(1, 2 if server else 1, 1), rows)
    if server is not None:
        _rates(figure.add_subplot(1, 2, 2), server)
    save_figure(figure, path)


def _percentiles(axes: Axes, rows: Sequence[dict[str, Any]]) -> None:
    most = 1.0
    for row in rows:
        kept = Latencies(row["histogram"])
        last = max(float(len(kept)), 2.0)
        most = max(most, last)
        turns = np.geomspace(1, last, _POINTS)
        latencies = [kept.percentile(100 * (1 - 1 / turn)) for turn in turns[:-1]] + [kept.highest]
        label = f"{row['scenario']}: {row['metric']} {row['value']:.1f} {row['unit']}"
        axes.plot(turns, latencies, color=_COLOURS[row["scenario"]], label=label, linewidth=1.6)
    marks = [mark for mark in _MARKS if 1 / (1 - mark / 100) <= most * 1.01]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([1 / (1 - mark / 100) for mark in marks], [f"{mark:g}" for mark in marks])
    axes.minorticks_off()
    _plain(axes)
    axes.set_xlabel("percentile (axis: 1 / (1 - p))")
    axes.set_ylabel("latency, ms")
    axes.set_title("How long requests take", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)


def _rates(axes: Axes, row: dict[str, Any]) -> None:
    bound, steps = row["settings"]["p99_ms"], row["detail"]["steps"]
    for holds, colour, text in ((True, _HOLDS, "holds the bound"), (False, _MISSES, "misses it")):
        for confirming, marker in ((False, "o"), (True, "*")):
            those = [step for step in steps if (step["holds"], step["confirming"]) == (holds, confirming)]
            label = text + (", run of full length" if confirming else "")
            if those:
                rates, latencies = [step["rate"] for step in those], [step["p99_ms"] for step in those]
                size = 170 if confirming else 36
                axes.scatter(rates, latencies, color=colour, marker=marker, s=size, label=label, zorder=3)
    axes.axhline(bound, color="#444444", linestyle="--", linewidth=1.2, label=f"bound: p99 {bound:g} ms")
    axes.axvline(
        row["value"], color="#999999", linestyle=":", linewidth=1.2, label=f"highest rate: {row['value']:.1f}/s"
    )
    axes.set_yscale("log")
    _plain(axes)
    axes.set_xlabel("Poisson arrivals per second")
    axes.set_ylabel("p99 latency from the arrival, ms")
    axes.set_title("Server: the highest rate that holds the bound", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False)


def _plain(axes: Axes) -> None:
    """Numbers like 5, 20 and 100 on a logarithmic axis of latencies, not powers of ten alone."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
