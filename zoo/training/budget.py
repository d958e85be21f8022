"""A training that ends within so many minutes: the number of epochs that its first steps promise, remembered.

The number is settled before training and kept in plan.json until the checkpoint is written, so that a run that was
interrupted goes on with the schedule it began with. What was planned stands in the lineage.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import UsageError
from zoo.base.files import write_bytes
from zoo.base.progress import note
from zoo.data.dataset import Dataset
from zoo.training.loop.distributed import gather, join_world
from zoo.training.loop.fit import Pace
from zoo.training.recipe import Run

__all__ = ["PLAN", "Plan", "identity_of", "plan", "read_plan", "settle", "write_plan"]

PLAN = "plan.json"

_MARGIN = 0.1
"""Share of the time that is left for other things to happen on the machine, and for writing state.pt."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was settled before a training with a budget."""

    identity: str
    """Of the run, see :func:`identity_of`."""
    epochs: int
    epoch_seconds: float
    """An epoch by the pace of the first steps."""
    planned_seconds: float
    """All of it, from opening the data to the measured checkpoint."""

    def summary(self) -> dict[str, float]:
        """What a lineage entry says about it."""
        return {"epoch_seconds": self.epoch_seconds, "planned_seconds": self.planned_seconds}


def settle(
    run: Run, dataset: Dataset, pace: Pace, *, identity: str, begun: float, decoding: float, test: bool = True
) -> Plan:
    """The plan of a run, which all processes come to; says so.

    Args:
        run: with `minutes`.
        dataset: its data.
        pace: of its first steps.
        identity: of the run.
        begun: when the budget began, as time.perf_counter tells it.
        decoding: seconds that decoding the training and validation images took.
        test: whether the test images are read at the end.

    Raises:
        UsageError: not even one epoch ends in time.
    """
    assert run.minutes is not None
    world = join_world()
    counts = {split: len(samples) for split, samples in dataset.splits.items()}
    # What comes after training: validation images (twice where adapters are merged) and test images are decoded and
    # answered, and BatchNorm may be measured over the training images.
    each = pace.validation / counts["validation"] + decoding / (counts["train"] + counts["validation"])
    answers = (2 if run.lora else 1) * counts["validation"] + test * counts["test"]
    measuring = answers * each + (pace.epoch if run.train.freeze.norm == "reestimate" else 0.0)
    settled = plan(
        run.minutes,
        pace,
        identity=identity,
        spent=max(gather(time.perf_counter() - begun, world)),
        measuring=max(gather(measuring, world)),
    )
    if world.first:
        length = f"an epoch takes {settled.epoch_seconds:.1f} s"
        note(f"{run.artefact}: {length}, so train.epochs = {settled.epochs} fits into {run.minutes:g} minutes")
    return settled


def plan(minutes: float, pace: Pace, *, identity: str, spent: float, measuring: float) -> Plan:
    """As many epochs as end in time.

    Args:
        minutes: the budget.
        pace: of the first steps.
        identity: of the run.
        spent: seconds of the budget that are over.
        measuring: seconds that the checkpoint's measurement will take.

    Raises:
        UsageError: not even one epoch does; says what would.
    """
    fixed = spent + pace.once + measuring
    epochs = math.floor((60 * minutes - fixed) * (1 - _MARGIN) / pace.epoch)
    if epochs < 1:
        least = math.ceil((fixed + pace.epoch / (1 - _MARGIN)) / 6) / 10
        raise UsageError(
            f"--minutes {minutes:g} is too little: an epoch takes about {pace.epoch:.1f} s on this machine, what comes "
            f"before and after all of them {fixed:.1f} s; give at least {least:.1f} minutes, or fewer images "
            "(--set images_per_split=N)"
        )
    return Plan(
        identity=identity,
        epochs=epochs,
        epoch_seconds=round(pace.epoch, 3),
        planned_seconds=round(fixed + epochs * pace.epoch, 1),
    )


def identity_of(config: Mapping[str, Any], parent: str | None) -> str:
    """SHA-256 of what a training is told, but for the number of epochs.

    Args:
        config: of its lineage entry.
        parent: SHA-256 of the checkpoint it starts from.
    """
    told = {**config, "fit": {key: value for key, value in config["fit"].items() if key != "epochs"}}
    return hashlib.sha256(json.dumps([told, parent], sort_keys=True).encode()).hexdigest()


def read_plan(folder: Path, identity: str) -> Plan | None:
    """What was planned for this run in an artefact's folder; None where nothing (readable) was."""
    path = folder / PLAN
    try:
        found: Plan = to_dataclass(Plan, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, DocumentError):
        return None
    return found if found.identity == identity and found.epochs >= 1 else None


def write_plan(folder: Path, settled: Plan) -> None:
    """Write plan.json."""
    write_bytes(folder / PLAN, json.dumps(dataclasses.asdict(settled), indent=2).encode())
