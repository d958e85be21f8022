"""The end of a search: the chosen files in their place, and the one look at the test split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.quantize.report import REPORT
from compress.search.evaluation import GRAPHS, Workbench, carry_out
from compress.search.journal import FLOAT, INT8, PARENT, Candidate, Journal, candidates, parent_of
from compress.search.pareto_front import Goal, choose
from compress.write_graph import CPU
from zoo.artefact.card import Metrics
from zoo.artefact.predictor import Predictor
from zoo.base.documents import to_dataclass
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, sha256_file
from zoo.base.progress import note
from zoo.base.statistics.paired import paired_difference
from zoo.data.dataset import Dataset, Sample
from zoo.training.evaluate import accuracy, logits_of
from zoo.training.loop.state import LOG

__all__ = ["FinalTest", "bring", "compare", "is_parent"]

_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class FinalTest:
    """The test split, read after the choice: the parent and the chosen file on the same images. Fractions."""

    parent: Metrics
    chosen: Metrics
    agreement: float
    """Share of the images on which both answer the same."""
    drop: float
    """Points of top-1 that are lost."""
    margin: float
    """Half of the 95 % interval of `drop`, from the images that only one of the two recognises."""


def is_parent(candidate: Candidate) -> bool:
    """Whether it is the artefact itself, as it was."""
    return candidate.task == PARENT and candidate.precision == FLOAT


def bring(journal: Journal, bench: Workbench, goal: Goal, out: Path) -> Candidate | None:
    """Move the files of the chosen candidate to `out`; those that were deleted since are made again.

    Making them again measures them again, so that another candidate may be the best then.
    """
    for _ in range(_TRIES):
        chosen = choose(candidates(journal.records), goal)
        if chosen is None or is_parent(chosen):
            return chosen
        place = bench.place(chosen.task)
        files = _files(journal, chosen, place, goal)
        if files is not None and _move(files, place, out):
            return chosen
        note(f"{chosen.name}: its files were deleted, so it is made again")
        carry_out(chosen.task, journal, bench)
    raise ArtefactError(f"the best candidate was made again {_TRIES} times and is another one each time; run it again")


def _files(journal: Journal, chosen: Candidate, place: Path, goal: Goal) -> dict[str, str] | None:
    """Name -> digest of the files that make up the new artefact; None where they are not known and not there.

    They are noted before the first of them is moved, so that a move that was killed can be completed.
    """
    known = journal.facts.get("chosen")
    if known and known["name"] == chosen.name and known["digest"] == chosen.digest:
        return dict(known["files"])
    names = [CHECKPOINT, GRAPH]
    found = candidates(journal.records)
    int8 = next((entry for entry in found if entry.task == chosen.task and entry.precision == INT8), None)
    # An INT8 file that misses the goal, or is slower than the FP32 one, is no part of the artefact.
    if int8 is not None and (
        int8 == chosen or (goal.accurate(int8, parent_of(found)) and goal.fits(int8) and int8.share < chosen.share)
    ):
        names.append(INT8_GRAPH)
    if not all((place / name).is_file() for name in names):
        return None
    if sha256_file(place / GRAPHS[chosen.precision]) != chosen.digest:
        return None
    files = {name: sha256_file(place / name) for name in names}
    journal.note("chosen", {"name": chosen.name, "digest": chosen.digest, "files": files})
    return files


def _move(files: dict[str, str], place: Path, out: Path) -> bool:
    """Move files to `out`, each atomically; False if one is in neither folder."""
    for name, digest in files.items():
        if _digest(out / name) == digest:
            continue
        if _digest(place / name) != digest:
            return False
        (place / name).replace(out / name)
    if INT8_GRAPH not in files:
        for name in (INT8_GRAPH, REPORT):
            (out / name).unlink(missing_ok=True)
    for name in (LOG, *([REPORT] if INT8_GRAPH in files else [])):
        if (place / name).is_file():
            (place / name).replace(out / name)
    return True


def _digest(path: Path) -> str | None:
    return sha256_file(path) if path.is_file() else None


def compare(journal: Journal, bench: Workbench, chosen: Candidate, path: Path, dataset: Dataset) -> FinalTest:
    """The parent and the chosen file on the test split; read from the journal if it was done before."""
    known = journal.facts.get("test")
    if known and known["digest"] == chosen.digest:
        return to_dataclass(FinalTest, known["result"], "test")
    # The graph of an artefact that is only quantized was moved with it.
    beside = path.with_name(GRAPH)
    reference = beside if chosen.task == PARENT else bench.reference()
    found = _compare(reference, path, dataset.splits["test"], dataset.name)
    journal.note("test", {"digest": chosen.digest, "result": dataclasses.asdict(found)})
    return found


def _compare(parent: Path, child: Path, samples: Sequence[Sample], name: str) -> FinalTest:
    truth = np.array([sample.label for sample in samples], dtype=np.int64)
    answers, metrics = [], []
    for path in (parent, child):
        predictor = Predictor(path, providers=CPU)
        logits = logits_of(predictor.logits, samples, predictor.card.use.input)
        answers.append(logits.argmax(axis=1))
        metrics.append(accuracy(logits, truth, dataset=name, split="test"))
    lost, won = (int(((one == truth) & (other != truth)).sum()) for one, other in (answers, answers[::-1]))
    n = len(samples)
    _, spread = paired_difference(n, gained=won, lost=lost)
    return FinalTest(
        parent=metrics[0],
        chosen=metrics[1],
        agreement=float((answers[0] == answers[1]).mean()),
        drop=100 * (lost - won) / n,
        margin=round(100 * 1.96 * spread, 3),
    )
