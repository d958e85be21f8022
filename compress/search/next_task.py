"""What a search tries next: a pure function of what it knows, so that an interrupted one goes on as if it had not been.

Accuracy falls and speed rises as less of a network stays, so the ratio at the edge of the goal is found by bisection.
At each ratio the importances are ranked by accuracy after pruning and recalibration, before any training, as in
EagleEye (Li et al. 2020, arXiv 2007.02491); only the best one is recovered, exported, quantized and timed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compress.search.journal import FLOAT, INT8, PARENT, Candidate, Record, Task, candidates, parent_of, record_of
from compress.search.pareto_front import Goal, contenders, drop, eligible

__all__ = ["FIRST", "FLOOR", "Plan", "last_task", "propose"]

FIRST = 0.5
"""The ratio that is tried first where no budget says where to look."""
LEAST = 0.05
"""No smaller ratio is tried."""
FINEST = 0.04
"""Two ratios nearer than this are one: widths are rounded, and accuracy is a count of images."""
_BETTER_THAN_MACS = 0.8
"""A pruned network's time is taken for no less than this times its share of the multiply-accumulates: what MACs cannot
bring, no candidate is made for."""
_RANKED_AGAIN = 2
"""After all importances were ranked at one ratio, so many of the best are ranked at each other one."""
FLOOR = "random"
"""The importance that any other must beat."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search is to do."""

    goal: Goal
    importances: tuple[str, ...]
    """Random is ranked once as the floor, even if it is not among them."""
    epochs: int
    """Of a recovery; 0: never."""
    most_epochs: int = 0
    """Of the longer recoveries that are tried when time is left."""


def propose(records: Sequence[Record], plan: Plan) -> Task | None:
    """The next task, as if there were time for all; None if there is nothing left to try.

    Args:
        records: all so far, the parent's among them.
        plan: what is wanted.
    """
    return next(_View(records, plan).tasks(), None)


def last_task(records: Sequence[Record], goal: Goal) -> Task | None:
    """Timing side by side what the choice is between, if that was not done yet."""
    timed = {name for record in records if record.task.kind == "retime" for name in record.task.names}
    close = contenders(candidates(records), goal)
    if all(entry.name in timed for entry in close):
        return None
    return Task(kind="retime", names=tuple(entry.name for entry in close))


class _View:
    """What the records say about ratios. `ratio` is what was asked for, `macs` what came of it."""

    def __init__(self, records: Sequence[Record], plan: Plan) -> None:
        self.records = records
        self.plan = plan
        self.found = candidates(records)
        self.parent = parent_of(self.found)
        self.ranked = {
            (record.task.ratio, record.task.importance): record for record in records if record.task.kind == "rank"
        }

    def tasks(self) -> Iterator[Task]:
        """What is to be done, in order; only the first matters."""
        if not any(record.hopeless for record in self.records):
            for precision in self.precisions():
                yield from self.to_the_edge(precision)
            yield from self.with_time_left()

    def precisions(self) -> list[str]:
        """The faster first; without a budget only INT8 that itself keeps the goal, since pruned it loses more."""
        own = [entry for entry in self.found if entry.task == PARENT]
        if not self.plan.goal.budgeted:
            own = [entry for entry in own if self.plan.goal.accurate(entry, self.parent)]
        return [entry.precision for entry in sorted(own, key=lambda entry: entry.share)]

    def to_the_edge(self, precision: str) -> Iterator[Task]:
        """What settles, by bisection, which ratio is the best that keeps the goal with this precision."""
        goal = self.plan.goal
        ratio = self.open_ratio(precision)
        if ratio is None:
            if goal.budgeted and (edge := self.edge(precision)) is not None:
                yield from self.recovered(edge)
            return
        yield from self.rankings(ratio)
        best = self.best(ratio)
        if not best:
            return
        plain = Task(kind="measure", ratio=ratio, importance=best[0].task.importance)
        if goal.budgeted or not self.plan.epochs or self.promising(best[0]):
            yield from self.new(plain)
        if not goal.budgeted:
            yield from self.new(dataclasses.replace(plain, epochs=self.plan.epochs))

    def recovered(self, ratio: float) -> Iterator[Task]:
        """Recovery of the best network of a ratio, if it has lost anything."""
        best = self.best(ratio)
        if best and self.plan.epochs and self.least_drop(ratio) > 0:
            importance = best[0].task.importance
            yield from self.new(Task(kind="measure", ratio=ratio, importance=importance, epochs=self.plan.epochs))

    def with_time_left(self) -> Iterator[Task]:
        """At the ratio that decides, the second importance and longer recoveries; then the floor as a candidate."""
        ratio = self.deciding()
        if ratio is not None:
            yield from self.more_at(ratio)
        chosen = next((entry for entry in eligible(self.found, self.plan.goal) if entry.task.importance), None)
        if chosen is not None:
            yield from self.new(dataclasses.replace(chosen.task, importance=FLOOR))

    def more_at(self, ratio: float) -> Iterator[Task]:
        """What else may help a ratio."""
        names = [record.task.importance for record in self.best(ratio)]
        epochs = self.plan.epochs
        for name in names[1:_RANKED_AGAIN]:
            yield from self.new(Task(kind="measure", ratio=ratio, importance=name, epochs=epochs))
        while names and epochs and 2 * epochs <= self.plan.most_epochs and self.least_drop(ratio) > 0:
            epochs *= 2
            yield from self.new(Task(kind="measure", ratio=ratio, importance=names[0], epochs=epochs))

    def new(self, task: Task) -> Iterator[Task]:
        """The task, unless it was done."""
        if record_of(self.records, task) is None:
            yield task

    def open_ratio(self, precision: str) -> float | None:
        """The next ratio whose verdict is wanted; None if the edge is known well enough."""
        return self.fitting_ratio(precision) if self.plan.goal.budgeted else self.smallest_ratio(precision)

    def smallest_ratio(self, precision: str) -> float | None:
        """Towards the smallest ratio that keeps the accuracy: what is fastest."""
        verdicts = {ratio: self.keeps(ratio, precision) for ratio in self.ratios()}
        good = min([1.0, *(ratio for ratio, verdict in verdicts.items() if verdict)])
        unsettled = [ratio for ratio, verdict in verdicts.items() if verdict is None and ratio < good]
        if unsettled and self.could_win(max(unsettled), precision):
            return max(unsettled)
        bad = max([0.0, *(ratio for ratio, verdict in verdicts.items() if verdict is False and ratio < good)])
        if good == 1.0 and bad == 0.0:
            return FIRST
        ratio = round((good + bad) / 2, 2) if bad else round(0.6 * good, 2)
        if good - ratio < FINEST / 2 or ratio - bad < FINEST / 2 or ratio < LEAST:
            return None
        return ratio if self.could_win(ratio, precision) else None

    def fitting_ratio(self, precision: str) -> float | None:
        """Towards the largest ratio that fits the budgets: what is most accurate."""
        goal = self.plan.goal
        own = next(entry for entry in self.found if entry.task == PARENT and entry.precision == precision)
        if goal.fits(own):
            return None
        wanted = min(
            goal.latency_ms / own.ms if goal.latency_ms is not None else 1.0,
            goal.megabytes / own.megabytes if goal.megabytes is not None else 1.0,
        )
        # A file's size falls with its multiply-accumulates in no fixed way, so only latency bounds the ratio.
        bound = 1.0 if goal.latency_ms is None else min(1.0, goal.latency_ms / own.ms / _BETTER_THAN_MACS)
        verdicts = {ratio: self.fitting(ratio, precision) for ratio in self.ratios()}
        unsettled = [
            ratio for ratio, verdict in verdicts.items() if verdict is None and ratio < bound and not self.fails(ratio)
        ]
        if unsettled:
            return max(unsettled)
        bad = min([bound, *(ratio for ratio, verdict in verdicts.items() if verdict is False)])
        below = [ratio for ratio, verdict in verdicts.items() if ratio < bad and (verdict or self.fails(ratio))]
        good = max(below, default=0.0)
        if not good:
            ratio = round(min(wanted, 0.75 * bad), 2)
            return ratio if ratio >= LEAST else None
        ratio = round((good + bad) / 2, 2)
        return None if min(ratio - good, bad - ratio) < FINEST / 2 else ratio

    def edge(self, precision: str) -> float | None:
        """The largest ratio that fits."""
        fits = [ratio for ratio in self.ratios() if self.fitting(ratio, precision)]
        return max(fits, default=None)

    def deciding(self) -> float | None:
        """The ratio at which more work could change the choice."""
        for precision in self.precisions():
            if self.plan.goal.budgeted:
                edge = self.edge(precision)
            else:
                edge = max((ratio for ratio in self.ratios() if self.misses(ratio, precision)), default=None)
            if edge is not None:
                return edge
        return None

    def ratios(self) -> list[float]:
        """All ratios that were worked on, ascending."""
        return sorted({record.task.ratio for record in self.records if record.task.importance})

    def keeps(self, ratio: float, precision: str) -> bool | None:
        """Whether some network of this ratio keeps the accuracy; None where the best one was not recovered yet."""
        made = self.made(ratio, precision)
        if any(self.plan.goal.accurate(entry, self.parent) for entry in made):
            return True
        if self.fails(ratio):
            return False
        best = self.best(ratio)
        tried = [
            record
            for record in self.records
            if record.task.kind == "measure"
            and record.task.epochs >= self.plan.epochs
            and self.same_network(ratio, record)
            and best
            and record.task.importance == best[0].task.importance
        ]
        return False if tried else None

    def misses(self, ratio: float, precision: str) -> bool:
        """Whether this ratio loses too much, and would be the fastest if it did not."""
        best = next(iter(eligible(self.found, self.plan.goal)), None)
        faster = [entry for entry in self.made(ratio, precision) if best is None or entry.share < best.share]
        return bool(faster) and self.keeps(ratio, precision) is False

    def fitting(self, ratio: float, precision: str) -> bool | None:
        """Whether the networks of this ratio fit the budgets; training changes neither time nor size."""
        made = self.made(ratio, precision)
        if made:
            return any(self.plan.goal.fits(entry) for entry in made)
        measured = [r for r in self.records if r.task.kind == "measure" and self.same_network(ratio, r)]
        return False if measured else None

    def made(self, ratio: float, precision: str) -> list[Candidate]:
        """The candidates of a ratio, or of another that rounding made the same."""
        sizes = {record.macs for (asked, _), record in self.ranked.items() if asked == ratio and not record.error}
        return [
            entry
            for entry in self.found
            if entry.task.importance and entry.precision == precision
            if entry.task.ratio == ratio or entry.macs in sizes
        ]

    def same_network(self, ratio: float, record: Record) -> bool:
        """Whether a record is of this ratio, or of another that rounding made the same."""
        sizes = {entry.macs for (asked, _), entry in self.ranked.items() if asked == ratio and not entry.error}
        return bool(record.task.importance) and (record.task.ratio == ratio or record.macs in sizes)

    def fails(self, ratio: float) -> bool:
        """Whether no importance can prune to this ratio."""
        wanted = self.wanted(ratio)
        return bool(wanted) and all(self.broken(ratio, name) for name in wanted)

    def broken(self, ratio: float, importance: str) -> bool:
        """Whether pruning failed here, or where more was to stay."""
        return any(
            record.error and asked >= ratio and name == importance for (asked, name), record in self.ranked.items()
        )

    def promising(self, ranked: Record) -> bool:
        """Whether a network keeps the accuracy even without recovery."""
        assert ranked.top1 is not None
        return 100 * (self.parent.top1 - ranked.top1) <= self.plan.goal.max_drop

    def least_drop(self, ratio: float) -> float:
        """Points that the most accurate candidate of a ratio loses."""
        made = [*self.made(ratio, FLOAT), *self.made(ratio, INT8)]
        return min((drop(entry, self.parent) for entry in made), default=float("inf"))

    def could_win(self, ratio: float, precision: str) -> bool:
        """Whether a network of this ratio may be faster than the best one so far."""
        best = next(iter(eligible(self.found, self.plan.goal)), None)
        own = next(entry for entry in self.found if entry.task == PARENT and entry.precision == precision)
        return best is None or _BETTER_THAN_MACS * ratio * own.share < best.share

    def rankings(self, ratio: float) -> Iterator[Task]:
        """Rankings that are due at a ratio."""
        for name in self.wanted(ratio):
            if (ratio, name) not in self.ranked and not self.broken(ratio, name):
                yield Task(kind="rank", ratio=ratio, importance=name)

    def wanted(self, ratio: float) -> tuple[str, ...]:
        """The importances for a ratio: all of them and the floor at the first one, then those that ranked best."""
        asked = [record.task.ratio for record in self.records if record.task.kind == "rank"]
        everything = tuple(dict.fromkeys((*self.plan.importances, FLOOR)))
        if not asked or ratio == asked[0]:
            return everything
        order = [record.task.importance for record in self.best(asked[0])]
        usable = [name for name in order if name in self.plan.importances]
        return tuple(usable[:_RANKED_AGAIN]) or self.plan.importances

    def best(self, ratio: float) -> list[Record]:
        """The rankings at a ratio, the most accurate first; the floor only where it was asked for."""
        found = [
            record
            for (asked, name), record in self.ranked.items()
            if asked == ratio and record.top1 is not None and name in self.plan.importances
        ]
        return sorted(found, key=lambda record: -(record.top1 or 0.0))
