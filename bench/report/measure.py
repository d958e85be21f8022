"""The evidence for an artefact: each of its files against what it was made from, on the same images, in one run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.report.history import Curve, PeerRows, read_curves, read_peers
from bench.report.quality import Answers, judge
from bench.rows import stamp
from compress.quantize.report import read_report, sentence
from zoo.artefact.card import Card, Metrics
from zoo.artefact.clock import Timing, summarise
from zoo.artefact.environment import load_average
from zoo.artefact.latency import LatencyConfig, latencies
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import softmax
from zoo.base.errors import ArtefactError, DataError
from zoo.base.files import GRAPH, HALF_GRAPH, INT8_GRAPH, output_root, sha256_file
from zoo.base.machine import cores
from zoo.base.progress import note
from zoo.base.statistics.intervals import Ratio, ratio
from zoo.base.statistics.paired import ClassLoss, Labels, Logits, Paired, agreement, compare_answers, worst_losses
from zoo.data.image_set import ImageSet
from zoo.training.evaluate import Answered, accuracy, calibration_error, file_logits
from zoo.training.parents import find_parent

__all__ = ["Comparison", "Line", "Report", "artefact_files", "measure_report", "name_of"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One ONNX file on its own."""

    path: Path
    card: Card
    digest: str
    logits: Logits = field(repr=False)
    """[N, K], what it answers to the images."""
    metrics: Metrics | None
    """None where the images have no labels."""
    calibration_error: float | None
    """Expected calibration error of the top answer, a fraction."""
    timings: Mapping[int, Timing]
    """Threads -> latency of one image."""
    engine: str
    """What computed the answers, and was timed."""
    engine_reason: str
    """A sentence."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One ONNX file against another one."""

    path: Path
    reference: Path
    relation: str
    """`parent`: what it was made from; `origin`: the first of all that led to it."""
    n: int
    agreement: float
    """Share of the images that both answer with the same label."""
    paired: Paired | None
    """None where the images have no labels."""
    worst: tuple[ClassLoss, ...]
    """The labels that lost most recall, worst first."""
    speed: Mapping[int, Ratio]
    """Threads -> how many times as fast as the reference."""
    smaller: float
    """How many times smaller than the reference's file."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it, and where and how it was measured."""

    artefact: str
    command: str
    pictures: ImageSet
    lines: tuple[Line, ...]
    """Parents before what was made from them."""
    comparisons: tuple[Comparison, ...]
    remarks: tuple[str, ...]
    """On files that were made and not written, since they are no better than what they were made from."""
    subject: Line
    """The file whose answers are looked at more closely: the one that was named, or the one of a folder
    that answers in `pocketzoo predict`."""
    answers: Answers | None
    """None where the images have no labels."""
    curves: tuple[Curve, ...]
    """Trainings of the artefact and of what it was made from, oldest first."""
    curve_problems: tuple[str, ...]
    """Why logs that are there are not among them."""
    peers: PeerRows
    latency: LatencyConfig
    load: float | None
    """How many tasks wanted a processor in the minute before the timing, on average; None: unknown."""
    run: str
    environment: Mapping[str, Any]
    time: str


def name_of(path: Path) -> str:
    """Folder and file: what an ONNX file is called in tables."""
    return f"{path.resolve().parent.name}/{path.name}"


def artefact_files(artefact: Path) -> list[Path]:
    """The ONNX files that a folder or file name means, the exported graph first.

    Raises:
        ArtefactError: there is none; says which command writes one.
    """
    found = sorted(artefact.glob("model*.onnx"), key=lambda path: (path.name != GRAPH, path.name))
    paths = found if artefact.is_dir() else [artefact] if artefact.is_file() else []
    if not paths:
        raise ArtefactError(f"no ONNX file at {artefact}; `pocketzoo export {artefact}` writes one")
    return paths


def measure_report(
    artefact: Path,
    pictures: ImageSet,
    *,
    against: Path | None = None,
    latency: LatencyConfig | None = None,
    command: str = "",
) -> Report:
    """Measure an artefact's files and what they were made from.

    Args:
        artefact: a folder, or one of its ONNX files.
        pictures: what all of them answer.
        against: folder or ONNX file to compare with instead of what the lineage says.
        latency: rounds and seconds; `threads` is the larger number of threads, the smaller one is 1.
        command: what was typed, for the record.

    Raises:
        ArtefactError, CardError, CheckError: a file cannot be used.
        DataError: the files have different labels, or the data set has others.
        PocketzooError: a measuring process failed.
    """
    latency = latency or LatencyConfig()
    asked = artefact_files(artefact.resolve())
    parents = _parents(asked, artefact_files(against.resolve())[0] if against else None)
    paths = sorted(parents, key=lambda path: len(_ancestors(path, parents)))
    cards = {path: read_card(path) for path in paths}
    _check_same_labels(cards)
    answered = {path: file_logits(path, pictures.samples, engine=latency.engine) for path in paths}
    engines = {path: found.engine for path, found in answered.items()}
    load = load_average()
    timed = {
        threads: latencies(paths, dataclasses.replace(latency, threads=threads), engines=engines)
        for threads in sorted({1, latency.threads or cores()})
    }
    labels = pictures.truth(cards[paths[0]].use.labels, where=name_of(paths[0]))
    lines = {}
    for path, found in answered.items():
        timings = {threads: summarise(times[path]) for threads, times in timed.items()}
        lines[path] = _line(path, found, timings, pictures, labels)
    subject = lines[_answering(asked)]
    curves, curve_problems = read_curves(
        ((path.parent, cards[path]) for path in paths), [asked[0].parent.parent, output_root()]
    )
    return Report(
        artefact=asked[0].parent.name,
        command=command,
        pictures=pictures,
        lines=tuple(lines.values()),
        comparisons=tuple(_comparisons(parents, lines, labels)),
        remarks=tuple(_remarks(asked[0].parent)),
        subject=subject,
        answers=judge(subject.logits, labels, pictures.samples, subject.card.use) if labels is not None else None,
        curves=curves,
        curve_problems=curve_problems,
        peers=read_peers({line.digest for line in lines.values()}),
        latency=latency,
        load=load,
        **stamp(),
    )


def _answering(asked: Sequence[Path]) -> Path:
    """The INT8 file where there is one, as `pocketzoo predict` and `pocketzoo explain` choose it."""
    return next((path for path in asked if path.name == INT8_GRAPH), asked[0])


def _parents(asked: Sequence[Path], against: Path | None) -> dict[Path, Path | None]:
    """The files and all that they were made from, each with its parent."""
    parents: dict[Path, Path | None] = dict.fromkeys(asked)
    waiting = list(asked)
    while waiting:
        path = waiting.pop(0)
        card = read_card(path)
        parent = find_parent(path, card, [output_root()])
        if against is not None and path in asked and parent not in asked:
            parent = against if against != path else None
        elif parent is None and {"prune", "quantize"} & {entry.stage for entry in card.lineage}:
            note(
                f"{name_of(path)}: what it was made from is not in {path.parent.parent}, or was made anew since; "
                "name it with --against, or make this file again"
            )
        parents[path] = parent
        if parent is not None and parent not in parents:
            parents[parent] = None
            waiting.append(parent)
    return parents


def _remarks(folder: Path) -> Iterator[str]:
    """What quantization said of files that it did not write, of the graph that is there now."""
    source = folder / GRAPH
    digest = sha256_file(source) if source.is_file() else None
    for name in (INT8_GRAPH, HALF_GRAPH):
        found = read_report(folder / name)
        if found and not found["written"] and found["parent"] == digest:
            yield f"{folder.name}/{name}: {sentence(found)}"


def _ancestors(path: Path, parents: Mapping[Path, Path | None]) -> list[Path]:
    """What a file was made from, the nearest first."""
    found: list[Path] = []
    parent = parents[path]
    while parent is not None and parent not in (path, *found):
        found.append(parent)
        parent = parents[parent]
    return found


def _check_same_labels(cards: Mapping[Path, Card]) -> None:
    first, *others = cards
    for other in others:
        if cards[other].use.labels != cards[first].use.labels:
            raise DataError(
                f"{name_of(other)} knows the labels {list(cards[other].use.labels)[:5]}, {name_of(first)} knows "
                f"{list(cards[first].use.labels)[:5]}; only files with the same labels can be compared"
            )


def _line(
    path: Path, answered: Answered, timings: Mapping[int, Timing], pictures: ImageSet, labels: Labels | None
) -> Line:
    metrics = error = None
    logits, card = answered.logits, answered.card
    if labels is not None:
        metrics = accuracy(logits, labels, dataset=pictures.name, split=pictures.split, engine=answered.engine)
        error = calibration_error(softmax(logits, card.use.temperature), labels)
    return Line(
        path=path,
        card=card,
        digest=answered.digest,
        logits=logits,
        metrics=metrics,
        calibration_error=error,
        timings=timings,
        engine=answered.engine,
        engine_reason=answered.engine_reason,
    )


def _comparisons(
    parents: Mapping[Path, Path | None], lines: Mapping[Path, Line], labels: Labels | None
) -> Iterator[Comparison]:
    """Each file against what it was made from, and against the first of all where that is another one."""
    for path, line in lines.items():
        ancestors = _ancestors(path, parents)
        references = dict.fromkeys((*ancestors[:1], *ancestors[-1:]))
        for relation, reference in zip(("parent", "origin"), references, strict=False):
            yield _compare(line, lines[reference], relation, labels)


def _compare(line: Line, reference: Line, relation: str, labels: Labels | None) -> Comparison:
    before, after = reference.logits, line.logits
    return Comparison(
        path=line.path,
        reference=reference.path,
        relation=relation,
        n=len(after),
        agreement=agreement(before, after),
        paired=compare_answers(before, after, labels) if labels is not None else None,
        worst=worst_losses(before, after, labels, line.card.use.labels) if labels is not None else (),
        speed={
            threads: ratio(reference.timings[threads].round_ms, timing.round_ms)
            for threads, timing in line.timings.items()
        },
        smaller=reference.path.stat().st_size / line.path.stat().st_size,
    )
