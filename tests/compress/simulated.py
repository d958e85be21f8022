"""A network that exists in numbers only, so that a whole search over it takes milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.search.journal import FLOAT, INT8, PARENT, File, Record, Task
from compress.search.next_task import Plan, last_task
from compress.search.time_budget import Budget, next_task

BUDGET = Budget(seconds=1e9, used=0.0, train_images=1000, validation_images=1000, test_images=1000)


@dataclass(frozen=True, kw_only=True)
class World:
    """Accuracy falls below the ratio `edge`, speed is what the multiply-accumulates are, plus an overhead."""

    n: int = 1000
    top1: float = 0.95
    edge: float = 0.3
    """Ratio from which a recovered network is as accurate as its parent."""
    fragile: float = 0.2
    """How much higher that ratio is without recovery."""
    slope: float = 2.0
    int8_loss: float = 0.002
    int8_share: float = 0.6
    overhead: float = 0.05
    floor: float = 0.02
    """Smallest ratio that can be pruned to."""
    prunable: bool = True
    ms: float = 10.0
    quality: tuple[str, ...] = ("fpgm", "l2", "taylor", "l1", "bn", "random")
    """Importances, the best first; each next one needs 0.04 more of the network."""

    def accuracy(self, task: Task, precision: str) -> float:
        handicap = 0.04 * self.quality.index(task.importance) if task.importance else 0.0
        needed = self.edge + handicap + (0.0 if task.epochs or not task.importance else self.fragile)
        lost = self.slope * max(0.0, needed - task.ratio) + (self.int8_loss if precision == INT8 else 0.0)
        return round(self.n * max(0.1, self.top1 - lost)) / self.n

    def share(self, ratio: float, precision: str) -> float:
        if precision == FLOAT and ratio == 1:
            return 1.0
        return (self.overhead + (1 - self.overhead) * ratio) * (self.int8_share if precision == INT8 else 1.0)

    def size(self, ratio: float, precision: str) -> int:
        return int(1e7 * ratio) // (4 if precision == INT8 else 1)

    def run(self, task: Task) -> Record:
        """What the task would come to."""
        if task.kind == "retime":
            return Record(task=task, seconds=10.0, parent_ms=self.ms)
        if task.importance and not self.prunable:
            return Record(task=task, seconds=1.0, error="cannot be pruned", hopeless=True)
        if task.importance and task.ratio < self.floor:
            return Record(task=task, seconds=1.0, error="out of reach")
        macs = int(1e6 * task.ratio)
        if task.kind == "rank":
            return Record(task=task, seconds=2.0, macs=macs, top1=self.accuracy(task, FLOAT))
        training = 5.0 * task.epochs
        files = tuple(self._file(task, precision) for precision in (FLOAT, INT8))
        return Record(
            task=task,
            seconds=20.0 + training,
            macs=macs,
            parameters=macs,
            files=files,
            parent_ms=self.ms,
            training_seconds=training,
            timing_seconds=10.0,
            image_seconds=0.001 if task == PARENT else 0.0,
        )

    def _file(self, task: Task, precision: str) -> File:
        top1, share = self.accuracy(task, precision), self.share(task.ratio, precision)
        return File(
            precision=precision,
            n=self.n,
            top1=top1,
            low=top1,
            high=top1,
            bytes=self.size(task.ratio, precision),
            digest=f"{task.name} {precision}",
            shares=(share, share, share),
        )


def search(world: World, plan: Plan, *, seconds: float = 1e9, records: Sequence[Record] = ()) -> list[Record]:
    """All records of a search that has so much time."""
    found = list(records)
    for _ in range(500):
        used = sum(record.seconds for record in found)
        task = next_task(found, plan, replace(BUDGET, seconds=seconds, used=used)) or last_task(found, plan.goal)
        if task is None:
            return found
        found.append(world.run(task))
    raise AssertionError("the search does not end")
