"""The end of a search: times side by side, the chosen files in their place, and the one look at the test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.quantize.report import REPORT
from compress.search.candidates import Candidate, Goal, Measured
from compress.search.trials import Trials
from compress.search.workbench import Workbench, copy
from zoo.artefact.card import Metrics
from zoo.base.documents import to_dataclass
from zoo.base.errors import ArtefactError
from zoo.base.files import INT8_GRAPH, sha256_file
from zoo.base.statistics.paired import Paired, agreement, compare_answers
from zoo.training.evaluate import accuracy, file_logits
from zoo.training.loop.state import LOG

__all__ = ["FinalTest", "bring", "compare", "confirm"]

_TRIES = 4
_ROUNDS = 6
"""Of which a 95 % interval can be had."""


@dataclass(frozen=True, kw_only=True)
class FinalTest:
    """The test split, read after the choice: the parent and the chosen file on the same images."""

    parent: Metrics
    chosen: Metrics
    agreement: float
    """Share of the images on which both answer the same."""
    difference: Paired
    """Chosen minus parent, in points."""


def confirm(trials: Trials, bench: Workbench, goal: Goal) -> None:
    """Time what the choice is between once more, side by side: the fastest of many had luck, too."""
    for _ in range(_TRIES):
        results, known = trials.results, trials.facts.get("retimed", {})
        there = {
            entry.name: entry
            for entry in results.contenders(goal)
            if known.get(entry.name, ("",))[0] != entry.digest and bench.path(entry.candidate).is_file()
        }
        if not there:
            return
        engines = {bench.path(entry.candidate): entry.engine for entry in there.values()}
        times = bench.time({bench.reference(): results.parent.engine}, engines, rounds=_ROUNDS)
        again = {name: (entry.digest, *times[bench.path(entry.candidate)]) for name, entry in there.items()}
        trials.study.set_user_attr("retimed", known | again)


def bring(
    trials: Trials, bench: Workbench, goal: Goal, out: Path, make: Callable[[Candidate], None]
) -> Measured | None:
    """Copy the files of the chosen candidate to `out`, each atomically; `make` makes those again that were deleted.

    Making them again measures them again, so that another candidate may be the best then.
    """
    for _ in range(_TRIES):
        chosen = trials.results.choose(goal)
        if chosen is None or chosen.candidate == bench.itself:
            return chosen
        place = bench.place(chosen.candidate)
        if all(_is(out / name, digest) for name, digest in chosen.files.items()):
            return chosen
        if all(_is(place / name, digest) for name, digest in chosen.files.items()):
            for name in (INT8_GRAPH, REPORT, LOG):
                if name not in chosen.files:
                    (out / name).unlink(missing_ok=True)
            beside = [name for name in (LOG, REPORT) if (place / name).is_file()]
            for name in (*beside, *chosen.files):
                copy(place / name, out / name)
            return chosen
        make(chosen.candidate)
    raise ArtefactError(f"the best candidate was made again {_TRIES} times and is another one each time; run it again")


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest


def compare(trials: Trials, bench: Workbench, chosen: Measured, path: Path) -> FinalTest:
    """The parent and the chosen file at `path` on the test split; read from the study if it was done before."""
    fact = f"test of {chosen.name}, {chosen.digest}"
    if fact in trials.facts:
        return to_dataclass(FinalTest, trials.facts[fact], "test")
    samples, name = bench.dataset.splits["test"], bench.dataset.name
    truth = np.array([sample.label for sample in samples], dtype=np.int64)
    pairs = ((bench.reference(), trials.results.parent.engine), (path, chosen.engine))
    before, after = (file_logits(file, samples, engine=engine).logits for file, engine in pairs)
    parent, child = (
        accuracy(logits, truth, dataset=name, split="test", engine=engine)
        for logits, (_, engine) in zip((before, after), pairs, strict=True)
    )
    found = FinalTest(
        parent=parent,
        chosen=child,
        agreement=agreement(before, after),
        difference=compare_answers(before, after, truth),
    )
    trials.study.set_user_attr(fact, dataclasses.asdict(found))
    return found
