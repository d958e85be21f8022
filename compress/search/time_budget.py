"""The time of a search: what its tasks will take, and which of them there is still time for."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from compress.search.journal import PARENT, Record, Task, record_of
from compress.search.next_task import FIRST, Plan, propose

__all__ = ["Budget", "epochs_for", "next_task"]

_RECOVERY_SHARE = 0.2
"""Of the whole time for one recovery, so that several ratios get one."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Time, and what it is needed for."""

    seconds: float
    used: float
    train_images: int
    validation_images: int
    test_images: int

    def reserve(self, records: Sequence[Record]) -> float:
        """Seconds that the end needs: timing the best side by side, and the test."""
        parent = record_of(records, PARENT)
        if parent is None:
            return 0.0
        # The parent and three candidates in five rounds, where the parent and its INT8 file had three.
        return 3.5 * parent.timing_seconds + 2 * self.test_images * parent.image_seconds

    def estimate(self, task: Task, records: Sequence[Record]) -> float:
        """Seconds that a task will take, from those before it."""
        parent = record_of(records, PARENT)
        if parent is None:
            return 0.0
        same = [record for record in records if record.task.kind == task.kind and record.task.importance]
        fixed = [max(0.0, record.seconds - record.training_seconds) for record in same if not record.error]
        # Nothing pruned was made yet: the parent's export, quantization and timing are the best guess.
        guess = parent.seconds - (parent.timing_seconds if task.kind == "rank" else 0.0)
        around = statistics.median(fixed) if fixed else guess
        return around + task.epochs * self.epoch_seconds(task.ratio, records)

    def epoch_seconds(self, ratio: float, records: Sequence[Record]) -> float:
        """Seconds of one epoch of recovery.

        A training image costs the student a pass forward and about two backward, and the teacher one forward; what
        recoveries really took corrects this.
        """
        real = [
            record.training_seconds / (record.task.epochs * self._model_seconds(record.task.ratio, records))
            for record in records
            if record.training_seconds > 0 and record.task.epochs
        ]
        return self._model_seconds(ratio, records) * (statistics.median(real) if real else 1.0)

    def _model_seconds(self, ratio: float, records: Sequence[Record]) -> float:
        parent = record_of(records, PARENT)
        image = max(parent.image_seconds, 1e-6) if parent else 1e-6
        return image * (self.train_images * (3 * ratio + 1) + self.validation_images * ratio)


def epochs_for(budget: Budget, records: Sequence[Record], most: int) -> int:
    """Epochs of a recovery to half of the network: a fifth of the time, at least one epoch and at most `most`.

    It depends on the parent's record alone, so that it stays the same through a search.
    """
    first = [record for record in records if record.task == PARENT][:1]
    seconds = budget.epoch_seconds(FIRST, first)
    return max(1, min(most, int(_RECOVERY_SHARE * budget.seconds / seconds)))


def next_task(records: Sequence[Record], plan: Plan, budget: Budget) -> Task | None:
    """The next task that there is time for; None if the search is over.

    A recovery that is too long for the time left becomes a shorter one, and then none.
    """
    if record_of(records, PARENT) is None:
        return PARENT
    left = budget.seconds - budget.used - budget.reserve(records)
    task = propose(records, plan)
    if task is None or _seconds(task, records, budget) <= left:
        return task
    if task.epochs:
        fixed = budget.estimate(dataclasses.replace(task, epochs=0), records)
        epochs = int((left - fixed) / budget.epoch_seconds(task.ratio, records))
        shorter = dataclasses.replace(task, epochs=min(epochs, task.epochs))
        if epochs >= 1 and record_of(records, shorter) is None and _worth(records, shorter):
            return shorter
        task = propose(records, dataclasses.replace(plan, epochs=0, most_epochs=0))
        if task is not None and _seconds(task, records, budget) <= left:
            return task
    return None


def _seconds(task: Task, records: Sequence[Record], budget: Budget) -> float:
    """What a task takes; a ranking is worth nothing without the time to make a candidate of it."""
    needed = budget.estimate(task, records)
    if task.kind == "rank":
        needed += budget.estimate(dataclasses.replace(task, kind="measure"), records)
    return needed


def _worth(records: Sequence[Record], task: Task) -> bool:
    """Whether a shorter recovery says anything new: none as long was made of the same network."""
    return not any(
        record.task.importance == task.importance
        and record.task.ratio == task.ratio
        and record.task.epochs >= task.epochs
        for record in records
    )
