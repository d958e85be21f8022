"""Choosing among candidates: the Pareto front, the goal, and an image of both."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.search.journal import FLOAT, INT8, PARENT, Candidate, parent_of
from zoo.base.errors import UsageError
from zoo.base.figures import axes

__all__ = ["Goal", "choose", "contenders", "draw", "drop", "eligible", "front", "label", "nearest", "remedy"]

_TINY = 1e-9
"""Rounding of the points of two counts of images."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted of a candidate."""

    max_drop: float = 0.5
    """Largest loss of validation top-1 against the parent, in points."""
    latency_ms: float | None = None
    """Longest median time of one image."""
    megabytes: float | None = None
    """Largest file, in millions of bytes."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop is in points of top-1, 0 to 100; got {self.max_drop:g}")
        for flag, value, unit in (("--latency-ms", self.latency_ms, "milliseconds"), ("--mb", self.megabytes, "MB")):
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{flag} must be a positive number of {unit}, got {value:g}")

    @property
    def budgeted(self) -> bool:
        """Whether the most accurate within a budget is wanted; else it is the fastest."""
        return self.latency_ms is not None or self.megabytes is not None

    def fits(self, candidate: Candidate) -> bool:
        """Whether a candidate is fast and small enough."""
        return (self.latency_ms is None or candidate.ms <= self.latency_ms) and (
            self.megabytes is None or candidate.megabytes <= self.megabytes
        )

    def accurate(self, candidate: Candidate, parent: Candidate) -> bool:
        """Whether a candidate loses little enough."""
        return drop(candidate, parent) <= self.max_drop + _TINY


def drop(candidate: Candidate, parent: Candidate) -> float:
    """Points of top-1 that a candidate loses against the parent; negative if it gains."""
    return 100 * (parent.hits - candidate.hits) / parent.n


def front(found: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other beats: at least as accurate, fast and small, and better in one of the three."""
    return [entry for entry in found if not any(_dominates(other, entry) for other in found)]


def _dominates(one: Candidate, other: Candidate) -> bool:
    pairs = ((one.hits, other.hits), (-one.share, -other.share), (-one.bytes, -other.bytes))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def eligible(found: Sequence[Candidate], goal: Goal) -> list[Candidate]:
    """The candidates that meet the goal, the best first.

    Without a budget the fastest is best, within one the most accurate; then the faster and the smaller.
    """
    parent = parent_of(found)
    meeting = [entry for entry in found if goal.accurate(entry, parent) and goal.fits(entry)]
    if goal.budgeted:
        return sorted(meeting, key=lambda entry: (-entry.hits, entry.share, entry.bytes))
    return sorted(meeting, key=lambda entry: (entry.share, -entry.hits, entry.bytes))


def choose(found: Sequence[Candidate], goal: Goal) -> Candidate | None:
    """The best candidate; None if none meets the goal."""
    return next(iter(eligible(found, goal)), None)


def contenders(found: Sequence[Candidate], goal: Goal, *, most: int = 3) -> list[Candidate]:
    """The candidates whose timing decides the choice, and is too uncertain for it: they want timing side by side.

    Without a budget these are the leader and those whose fastest round was faster than its slowest one. With a budget
    of milliseconds it is whoever leads; a file's size is certain.
    """
    best = [entry for entry in eligible(found, goal) if entry.task != PARENT or entry.precision != FLOAT]
    if not best or (goal.budgeted and goal.latency_ms is None):
        return []
    if goal.budgeted:
        return best[:1]
    # What has the leader's widths has its times, too.
    others = [entry for entry in best[1:] if entry.shares != best[0].shares]
    close = [best[0], *(entry for entry in others if min(entry.shares) <= max(best[0].shares))][:most]
    return close if len(close) > 1 else []


def nearest(found: Sequence[Candidate], goal: Goal, *, most: int = 3) -> list[Candidate]:
    """The candidates that miss the goal by least: the excess of each limit, relative to it, summed up.

    An excess of accuracy's limit counts relative to at least one point, since 0 is a possible limit.
    """
    parent = parent_of(found)

    def miss(entry: Candidate) -> float:
        parts = [max(0.0, drop(entry, parent) - goal.max_drop) / max(goal.max_drop, 1.0)]
        if goal.latency_ms is not None:
            parts.append(max(0.0, entry.ms / goal.latency_ms - 1))
        if goal.megabytes is not None:
            parts.append(max(0.0, entry.megabytes / goal.megabytes - 1))
        return sum(parts)

    return sorted(found, key=miss)[:most]


def remedy(candidate: Candidate, parent: Candidate, goal: Goal) -> str:
    """The options with which a candidate would have met the goal."""
    wanted = []
    lost = drop(candidate, parent)
    if lost > goal.max_drop + _TINY:
        wanted.append(f"--max-drop {_up(lost)}")
    if goal.latency_ms is not None and candidate.ms > goal.latency_ms:
        wanted.append(f"--latency-ms {_up(candidate.ms)}")
    if goal.megabytes is not None and candidate.megabytes > goal.megabytes:
        wanted.append(f"--mb {_up(candidate.megabytes)}")
    return " ".join(wanted)


def _up(value: float) -> str:
    """Three digits, rounded up, so that the limit is met."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step - 1e-6) * step:.3g}"


def draw(found: Sequence[Candidate], goal: Goal, chosen: Candidate | None, path: Path, *, title: str) -> None:
    """Write an image of all candidates: accuracy over time, the size as the area, the front as a line.

    Args:
        found: with the parent among them.
        goal: drawn as lines.
        chosen: marked, if any.
        path: of the PNG.
        title: above it.
    """
    parent = parent_of(found)
    unbeaten = front(found)
    beaten = [entry for entry in found if entry not in unbeaten]
    scale = 400 / max(entry.bytes for entry in found)
    with axes(path, width=9.0, height=5.5) as plot:
        for precision, colour in ((FLOAT, "tab:blue"), (INT8, "tab:orange")):
            for group, alpha in ((unbeaten, 0.75), (beaten, 0.25)):
                shown = [entry for entry in group if entry.precision == precision]
                plot.scatter(
                    [entry.ms for entry in shown],
                    [100 * entry.top1 for entry in shown],
                    s=[max(12.0, scale * entry.bytes) for entry in shown],
                    color=colour,
                    alpha=alpha,
                    linewidths=0,
                )
            # One mark of one size in the legend, whatever the files' sizes.
            plot.scatter([], [], s=50, color=colour, label=precision)
        steps = _staircase(found)
        times = [entry.ms for entry in steps]
        plot.plot(times, [100 * entry.top1 for entry in steps], color="0.5", lw=1, drawstyle="steps-post", zorder=0)
        limit = f"at most {goal.max_drop:g} points lost"
        plot.axhline(100 * parent.top1 - goal.max_drop, color="tab:red", lw=1, ls="--", label=limit)
        if goal.latency_ms is not None:
            plot.axvline(goal.latency_ms, color="tab:green", lw=1, ls="--", label=f"{goal.latency_ms:g} ms")
        if chosen is not None:
            plot.scatter([chosen.ms], [100 * chosen.top1], s=350, facecolors="none", edgecolors="black", label="chosen")
        named = {parent.name: parent} | {entry.name: entry for entry in [chosen] if entry}
        for entry in named.values():
            # To the side on which there is room.
            left = entry.ms > statistics.mean(plot.get_xlim())
            plot.annotate(
                label(entry),
                (entry.ms, 100 * entry.top1),
                xytext=(-14 if left else 14, -16),
                textcoords="offset points",
                ha="right" if left else "left",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            )
        plot.set_xlabel("ms of one image, ONNX Runtime, this machine")
        plot.set_ylabel("validation top-1 %")
        plot.set_title(f"{title} (n = {parent.n}; areas are file sizes)")
        plot.margins(y=0.15)
        plot.legend(loc="best")


def _staircase(found: Sequence[Candidate]) -> list[Candidate]:
    """What remains unbeaten if size does not count, by time."""
    steps: list[Candidate] = []
    for entry in sorted(found, key=lambda entry: (entry.ms, -entry.hits)):
        if not steps or entry.hits > steps[-1].hits:
            steps.append(entry)
    return steps


def label(entry: Candidate) -> str:
    """What a candidate is, in words."""
    task = entry.task
    if not task.importance:
        return "unpruned" if entry.precision == FLOAT else f"unpruned, {entry.precision}"
    recovered = f", {task.epochs} epochs" if task.epochs else ""
    return f"{task.importance} {task.ratio:.2f}{recovered}, {entry.precision}"
