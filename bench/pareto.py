"""Accuracy over latency of all artefacts, as an image: what each step of making a network small costs and brings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.artefact_table import Line
from zoo.base.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["KEY", "draw_pareto", "front"]

KEY = "rows"
"""Keyword of the PNG's text chunk that holds the digest of the rows it was drawn from."""

_FP32, _INT8 = "#0072b2", "#d55e00"


def front(lines: Sequence[Line]) -> list[Line]:
    """The files that no other one is both faster and more accurate than, fastest first."""
    best: list[Line] = []
    for line in sorted(lines, key=lambda line: (_ms(line), -_top1(line))):
        if not best or _top1(line) > _top1(best[-1]):
            best.append(line)
    return best


def draw_pareto(groups: Mapping[str, Sequence[Line]], path: Path, *, digest: str) -> None:
    """Write one plot per data set, side by side: test top-1 with its 95 % interval over p50 latency.

    Args:
        groups: data set -> its measured files; those that lack a measurement, and controls, are left out.
        path: of the PNG file.
        digest: of the rows, kept in the file (KEY).

    Raises:
        ArtefactError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5 * len(groups), 6.5), layout="constrained")
    for place, (name, lines) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        _draw(place, name, [line for line in lines if line.accuracy and line.latency and line.role == "model"])
    save_figure(figure, path, remarks={KEY: digest})


def _draw(place: Axes, name: str, lines: Sequence[Line]) -> None:
    for line in lines:
        int8 = line.what["precision"] == "int8"
        low, high = 100 * _interval(line)[0], 100 * _interval(line)[1]
        middle = 100 * _top1(line)
        place.errorbar(
            _ms(line),
            middle,
            yerr=[[middle - low], [high - middle]],
            fmt="s" if int8 else "o",
            color=_INT8 if int8 else _FP32,
            markersize=7,
            elinewidth=0.8,
            capsize=2,
            alpha=0.9,
        )
    best = front(lines)
    # Between two files there is none: whoever has a little more time still has the faster one.
    times, shares = [_ms(line) for line in best], [100 * _top1(line) for line in best]
    place.step(times, shares, where="post", color="0.6", lw=1, zorder=0)
    middle_ms = sum(place.get_xlim()) / 2
    for order, line in enumerate(sorted(lines, key=lambda line: (_top1(line), _ms(line)))):
        left = _ms(line) > middle_ms
        place.annotate(
            line.name,
            (_ms(line), 100 * _top1(line)),
            xytext=(-7 if left else 7, 6 if order % 2 else -12),
            textcoords="offset points",
            horizontalalignment="right" if left else "left",
            fontsize=7.5,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
        )
    for colour, mark, label in ((_FP32, "o", "FP32"), (_INT8, "s", "INT8")):
        place.plot([], [], mark, color=colour, label=label)
    place.plot([], [], color="0.6", lw=1, label="Pareto front: none is both faster and better")
    place.legend(fontsize=8, loc="upper right")
    place.margins(x=0.15, y=0.2)
    first = lines[0].accuracy if lines else None
    timed = lines[0].latency if lines else None
    counted = f", n = {first['n']}" if first else ""
    machine = f"\n{timed['environment']['cpu']}, {timed['threads']} threads, batch 1" if timed else ""
    place.set(
        title=f"{name}{counted}{machine}",
        xlabel="p50 latency of one image (ms)",
        ylabel="test top-1 (%), 95 % interval",
    )
    place.grid(alpha=0.25)


def _ms(line: Line) -> float:
    assert line.latency is not None
    return float(line.latency["p50_ms"])


def _top1(line: Line) -> float:
    assert line.accuracy is not None
    return float(line.accuracy["top1"])


def _interval(line: Line) -> tuple[float, float]:
    assert line.accuracy is not None
    return float(line.accuracy["low"]), float(line.accuracy["high"])
