"""The end of a search: the chosen files in their place, and the one look at the test split."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.quantize.report import REPORT
from compress.search.candidates import Measured
from compress.search.trials import Trials
from compress.search.workbench import Workbench, copy
from zoo.artefact.card import Metrics
from zoo.base.documents import to_dataclass
from zoo.base.errors import ArtefactError
from zoo.base.files import INT8_GRAPH, sha256_file
from zoo.base.statistics.paired import Paired, agreement, compare_answers
from zoo.training.evaluate import accuracy, file_logits
from zoo.training.loop.state import LOG

__all__ = ["FinalTest", "bring", "compare"]


@dataclass(frozen=True, kw_only=True)
class FinalTest:
    """The test split, read after the choice: the parent and the chosen file on the same images."""

    parent: Metrics
    chosen: Metrics
    agreement: float
    """Share of the images on which both answer the same."""
    difference: Paired
    """Chosen minus parent, in points."""


def bring(bench: Workbench, chosen: Measured, out: Path) -> None:
    """Copy the files of the chosen candidate to `out`, each atomically; the same call completes it after a kill.

    Raises:
        ArtefactError: they are neither there nor where the search has made them.
    """
    place, files = bench.place(chosen.candidate), chosen.files
    if INT8_GRAPH not in files:
        for name in (INT8_GRAPH, REPORT):
            (out / name).unlink(missing_ok=True)
    if all(_is(out / name, digest) for name, digest in files.items()):
        return
    if not all(_is(place / name, digest) for name, digest in files.items()):
        raise ArtefactError(f"{place} has not the files of {chosen.name} any more; remove {out} to begin anew")
    for name in (*files, LOG, *([REPORT] if INT8_GRAPH in files else [])):
        if (place / name).is_file():
            copy(place / name, out / name)
        else:
            (out / name).unlink(missing_ok=True)


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and sha256_file(path) == digest


def compare(trials: Trials, bench: Workbench, chosen: Measured, path: Path) -> FinalTest:
    """The parent and the chosen file at `path` on the test split; read from the study if it was done before."""
    fact = f"test of {chosen.name}"
    if fact in trials.facts:
        return to_dataclass(FinalTest, trials.facts[fact], "test")
    samples, name = bench.dataset.splits["test"], bench.dataset.name
    truth = np.array([sample.label for sample in samples], dtype=np.int64)
    before = file_logits(bench.reference(), samples, engine=trials.results.parent.engine)
    after = file_logits(path, samples, engine=chosen.engine)
    found = FinalTest(
        parent=accuracy(before.logits, truth, dataset=name, split="test", engine=before.engine),
        chosen=accuracy(after.logits, truth, dataset=name, split="test", engine=after.engine),
        agreement=agreement(before.logits, after.logits),
        difference=compare_answers(before.logits, after.logits, truth),
    )
    trials.study.set_user_attr(fact, dataclasses.asdict(found))
    return found
