"""The front of a search as an image: accuracy over time."""

from __future__ import annotations

from pathlib import Path

from compress.search.candidates import PRECISIONS, Goal, Measured, Results
from zoo.base.figures import axes
from zoo.base.machine import processor
from zoo.base.statistics.intervals import sureness

__all__ = ["draw"]

_COLOURS = dict(zip(PRECISIONS, ("tab:blue", "tab:orange", "tab:green"), strict=True))
_MARKS = {"onnxruntime": "o", "openvino": "s", "openvino-bf16": "D"}


def draw(results: Results, goal: Goal, chosen: Measured | None, path: Path, *, title: str) -> None:
    """Write an image of all candidates as PNG to `path`: the front as a line, the goal as lines, `chosen` marked.

    Colours are precisions, marks engines, numbers beside them the input sizes where there are several.
    """
    parent, n = results.parent, results.parent.metrics.n
    sizes = {entry.candidate.size for entry in results.entries}
    with axes(path, width=9.0, height=6.0) as plot:
        named: set[str] = set()
        for entry in results.entries:
            ms, top1, speed = results.ms(entry), 100 * entry.metrics.top1, entry.speed
            colour, mark = _COLOURS[entry.candidate.precision], _MARKS[entry.engine]
            kind = f"{entry.candidate.precision}, {entry.engine}"
            low, high = (speed.low, speed.high) if speed.low and speed.high else (speed.value,) * 2
            plot.errorbar(
                ms,
                top1,
                xerr=[[max(0.0, ms - results.parent_ms / high)], [max(0.0, results.parent_ms / low - ms)]],
                yerr=[[max(0.0, top1 - 100 * entry.metrics.low)], [max(0.0, 100 * entry.metrics.high - top1)]],
                color=colour,
                marker=mark,
                alpha=0.9 if entry in results.front() else 0.35,
                elinewidth=0.6,
            )
            if kind not in named:
                plot.plot([], [], color=colour, marker=mark, lw=0, label=kind)
                named.add(kind)
            if len(sizes) > 1:
                height, width = entry.candidate.size
                text = f"{height}" if height == width else f"{height}x{width}"
                plot.annotate(text, (ms, top1), xytext=(4, 4), textcoords="offset points", fontsize=7)
        steps = _steps(results)
        plot.plot(*zip(*steps, strict=True), color="0.5", lw=1, drawstyle="steps-post", zorder=0, label="unbeaten")
        limit = 100 * parent.metrics.top1 - goal.max_drop
        plot.axhline(limit, color="tab:red", lw=1, ls="--", label=f"at most {goal.max_drop:g} points lost")
        if goal.latency_ms is not None:
            plot.axvline(goal.latency_ms, color="tab:green", lw=1, ls="--", label=f"{goal.latency_ms:g} ms")
        for ring, name, area in ((parent, "the artefact itself", 160), (chosen, "chosen", 320)):
            if ring is not None:
                x, y = results.ms(ring), 100 * ring.metrics.top1
                plot.scatter([x], [y], s=area, facecolors="none", edgecolors="black", lw=area / 160, label=name)
        rounds = min(len(entry.ms) for entry in results.entries)
        plot.set_xlabel(
            f"ms of one image on {processor()['cpu']}, {processor()['cores']} cores ({sureness(rounds)} of the rounds)"
        )
        plot.set_ylabel(f"validation top-1 %, n = {n} (Wilson 95 % interval)")
        plot.set_title(title)
        plot.legend(loc="best", fontsize=8)


def _steps(results: Results) -> list[tuple[float, float]]:
    """Milliseconds and top-1 % of what is unbeaten if size does not count, by time."""
    steps: list[tuple[float, float]] = []
    for entry in sorted(results.entries, key=lambda entry: (entry.share, -entry.hits)):
        if not steps or 100 * entry.metrics.top1 > steps[-1][1]:
            steps.append((results.ms(entry), 100 * entry.metrics.top1))
    return steps
