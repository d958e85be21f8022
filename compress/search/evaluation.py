"""Makes the candidates of a search with the very stages that make artefacts, and measures what they made.

Only the training and validation splits are read.
"""

from __future__ import annotations

import dataclasses
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.export import export
from compress.prune.stage import prune
from compress.quantize.stage import quantize
from compress.recalibrate import batch_norms, recalibrate
from compress.recover import recover
from compress.search.journal import FLOAT, INT8, PARENT, Candidate, File, Journal, Record, Task, candidates
from compress.search.pareto_front import front
from zoo.artefact import onnx_file as graph
from zoo.artefact.latency import LatencyConfig, latencies
from zoo.base.errors import ArtefactError, CheckError, TrainingError, UsageError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, sha256_file
from zoo.base.progress import note
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages
from zoo.networks.checkpoint import load, read_card, save
from zoo.networks.shrink import attentions
from zoo.training.evaluate import torch_logits
from zoo.training.loop.config import FitConfig
from zoo.training.recipe import PruneConfig, QuantizeConfig, RecalibrateConfig, RecoverConfig
from zoo.training.workspace import card_if_readable, is_current

__all__ = ["GRAPHS", "Settings", "Workbench", "carry_out"]

GRAPHS = {FLOAT: GRAPH, INT8: INT8_GRAPH}
"""Precision -> name of the file."""

_RANKED = "ranked"
_ROUNDS = 3
_LAST_ROUNDS = 5
_SAMPLE = 256
"""Validation images by which torch's speed is known."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How candidates are made; with other settings they would be others."""

    max_drop: float
    """Points of validation top-1 that all stages together may lose."""
    fit: FitConfig
    """Of recovery; each task has its own number of epochs."""
    seed: int = 0
    prune: PruneConfig = dataclasses.field(default_factory=PruneConfig)
    recalibrate: RecalibrateConfig = dataclasses.field(default_factory=RecalibrateConfig)
    recover: RecoverConfig = dataclasses.field(default_factory=RecoverConfig)
    quantize: QuantizeConfig = dataclasses.field(default_factory=QuantizeConfig)
    latency: LatencyConfig = dataclasses.field(default_factory=lambda: LatencyConfig(rounds=_ROUNDS))


class Workbench:
    """Makes and measures candidates in a folder of its own."""

    def __init__(self, source: Path, folder: Path, settings: Settings, dataset: Dataset, *, name: str) -> None:
        """Look at the artefact.

        Args:
            source: its checkpoint.
            folder: gets a folder per candidate.
            settings: how candidates are made.
            dataset: trains, calibrates and validates them.
            name: of the artefact that one of them will be.
        """
        self.source = source
        self.folder = folder
        self.settings = settings
        self.dataset = dataset
        self.name = name
        self._card = read_card(source)
        model = load(source)[0]
        self._normed = bool(batch_norms(model))
        self._attention = bool(attentions(model))

    def place(self, task: Task) -> Path:
        """The folder of a measured candidate's files."""
        return self.folder / task.name

    def path(self, candidate: Candidate) -> Path:
        """The ONNX file of a candidate."""
        return self.place(candidate.task) / GRAPHS[candidate.precision]

    def reference(self) -> Path:
        """The artefact's own FP32 graph; exported again where a finished search has deleted it."""
        path = self.place(PARENT) / GRAPH
        if not path.is_file():
            export(self._named(), path, dataset=self.dataset)
        return path

    def _named(self) -> Path:
        """A copy of the artefact under the new one's name, which it gets where it is only quantized."""
        path = self.place(PARENT) / CHECKPOINT
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            model, card = load(self.source)
            save(model, dataclasses.replace(card, name=self.name), path)
        return path

    def run(self, task: Task) -> Record:
        """Do a task.

        Returns:
            What came of it; a network that cannot be made is a result, too.

        Raises:
            PocketzooError: the artefact itself cannot be exported, or the data cannot be read.
        """
        begin = time.perf_counter()
        try:
            if task == PARENT:
                record = self._parent()
            else:
                record = {"rank": self._rank, "measure": self._measure, "retime": self._retime}[task.kind](task)
        except (ArtefactError, CheckError, TrainingError, UsageError) as error:
            if task == PARENT:
                raise
            note(f"{task.name}: {error}")
            hopeless = task.kind == "rank" and isinstance(error, ArtefactError)
            record = Record(task=task, seconds=0.0, error=str(error), hopeless=hopeless)
        return dataclasses.replace(record, seconds=round(time.perf_counter() - begin + record.seconds, 3))

    def clean(self, keep: Sequence[Task]) -> None:
        """Delete the files of all measured candidates but those of `keep`."""
        wanted = {PARENT.name, _RANKED, *(task.name for task in keep)}
        for place in self.folder.iterdir() if self.folder.is_dir() else ():
            if place.name not in wanted:
                shutil.rmtree(place)

    def _parent(self) -> Record:
        self._named()
        model, card = load(self.source)
        images = DecodedImages(self.dataset.splits["validation"][:_SAMPLE], card.use.input)
        torch_logits(model, images)
        begin = time.perf_counter()
        torch_logits(model, images)
        seconds = (time.perf_counter() - begin) / len(images)
        record = self._timed(PARENT, self.reference())
        return dataclasses.replace(record, image_seconds=round(seconds, 6))

    def _rank(self, task: Task) -> Record:
        path = self._ranked(task)
        card = read_card(path)
        top1 = _top1(path)
        note(f"{task.name}: {card.inform.macs / self._card.inform.macs:.0%} of the MACs, {top1:.2%} before recovery")
        return Record(task=task, seconds=0.0, macs=card.inform.macs, parameters=card.inform.parameters, top1=top1)

    def _ranked(self, task: Task) -> Path:
        """The pruned and recalibrated checkpoint, made if it is not there."""
        folder = self.folder / _RANKED
        name = Task(kind="rank", ratio=task.ratio, importance=task.importance).name
        pruned, done = folder / f"{name}.pruned.safetensors", folder / f"{name}.safetensors"
        if done.is_file():
            return done
        for old in folder.glob("*.safetensors"):
            # Those of other ratios are made again in the rare case that they are wanted.
            if f"-{task.ratio:.2f}" not in old.name:
                old.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        config = dataclasses.replace(
            self.settings.prune, macs=task.ratio, importance=task.importance, seed=self.settings.seed
        )
        prune(self.source, pruned, config, dataset=self.dataset, name=self.name)
        if self._normed:
            recalibrate(pruned, done, self.settings.recalibrate, dataset=self.dataset)
            pruned.unlink()
        else:
            pruned.replace(done)
        return done

    def _measure(self, task: Task) -> Record:
        place = self.place(task)
        target = place / CHECKPOINT
        place.mkdir(parents=True, exist_ok=True)
        training = self._recover(task, target) if task.epochs else 0.0
        if not task.epochs:
            shutil.copyfile(self._ranked(task), target)
        export(target, place / GRAPH, dataset=self.dataset)
        record = self._timed(task, self.reference())
        return dataclasses.replace(record, training_seconds=training)

    def _recover(self, task: Task, target: Path) -> float:
        """Recover the pruned network of a task, unless a session that was killed later did; the seconds it took."""
        ranked = self._ranked(task)
        fit = dataclasses.replace(self.settings.fit, epochs=task.epochs, seed=self.settings.seed)
        config = dataclasses.replace(self.settings.recover, fit=fit)
        done = card_if_readable(read_card, target)
        if done is not None and is_current(done, [("recover", dataclasses.asdict(config))], sha256_file(ranked)):
            return done.lineage[-1].seconds
        begin = time.perf_counter()
        report = recover(ranked, self.source, target, config, dataset=self.dataset, test=False)
        # A resumed recovery began in an earlier session, whose time only its own report knows.
        return max(report.seconds, round(time.perf_counter() - begin, 3))

    def _timed(self, task: Task, reference: Path) -> Record:
        """Quantize the exported network of a task, and time both files beside the parent's."""
        place = self.place(task)
        exact, int8 = place / GRAPH, place / INT8_GRAPH
        own = graph.read_card(exact)
        left = round(self.settings.max_drop - 100 * (_top1(reference) - _top1(exact)), 4)
        config = dataclasses.replace(
            self.settings.quantize,
            # Where pruning has used up the budget, nothing is gained by leaving nodes in float to keep it.
            max_drop=left if left >= 0 else 100.0,
            keep="any",
            seed=self.settings.seed,
        )
        int8.unlink(missing_ok=True)
        try:
            # Only between methods, as transformers have them, does quantization itself decide by speed.
            quantize(exact, int8, config, dataset=self.dataset, name=f"{own.name}-int8", timed=self._attention)
        except (ArtefactError, CheckError) as error:
            note(f"{task.name}: not quantized: {error}")
        paths = [path for path in (exact, int8) if path.is_file()]
        begin = time.perf_counter()
        shares, parent_ms = _shares(reference, paths, self.settings.latency)
        timing = time.perf_counter() - begin
        return Record(
            task=task,
            seconds=0.0,
            macs=own.inform.macs,
            parameters=read_card(place / CHECKPOINT).inform.parameters,
            files=tuple(_file(path, shares[path]) for path in paths),
            parent_ms=round(parent_ms, 5),
            timing_seconds=round(timing, 3),
        )

    def _retime(self, task: Task) -> Record:
        folders, precisions = zip(*(name.rsplit(" ", 1) for name in task.names), strict=True)
        paths = [
            self.folder / folder / GRAPHS[precision] for folder, precision in zip(folders, precisions, strict=True)
        ]
        there = {name: path for name, path in zip(task.names, paths, strict=True) if path.is_file()}
        if not there:
            # A finished search has cleaned up; what it found out about time still holds.
            return Record(task=task, seconds=0.0)
        config = dataclasses.replace(self.settings.latency, rounds=max(_LAST_ROUNDS, self.settings.latency.rounds))
        shares, parent_ms = _shares(self.reference(), list(there.values()), config)
        return Record(
            task=task,
            seconds=0.0,
            shares={name: shares[path] for name, path in there.items()},
            parent_ms=round(parent_ms, 5),
        )


def _shares(
    reference: Path, paths: Sequence[Path], config: LatencyConfig
) -> tuple[Mapping[Path, tuple[float, ...]], float]:
    """Median time of each file as a share of the reference's in the same round, and the reference's milliseconds."""
    found = latencies(list(dict.fromkeys((reference, *paths))), config)
    medians = {path: [statistics.median(samples) for samples in rounds] for path, rounds in found.items()}
    shares = {
        path: tuple(round(own / base, 5) for own, base in zip(medians[path], medians[reference], strict=True))
        for path in paths
    }
    return shares, statistics.median(medians[reference])


def _file(path: Path, shares: tuple[float, ...]) -> File:
    card = graph.read_card(path)
    metrics = card.metrics("validation")
    assert metrics is not None
    return File(
        precision=INT8 if path.name == INT8_GRAPH else FLOAT,
        n=metrics.n,
        top1=metrics.top1,
        low=metrics.low,
        high=metrics.high,
        bytes=path.stat().st_size,
        digest=sha256_file(path),
        shares=shares,
    )


def _top1(path: Path) -> float:
    """Validation accuracy in a file's card."""
    metrics = (graph.read_card if path.suffix == ".onnx" else read_card)(path).metrics("validation")
    assert metrics is not None
    return metrics.top1


def carry_out(task: Task, journal: Journal, bench: Workbench) -> None:
    """Do a task and keep what came of it; the files of candidates that are beaten by now are deleted."""
    journal.begin(task)
    try:
        record = bench.run(task)
    except KeyboardInterrupt:
        assert journal.open is not None
        journal.lose(max(0.0, time.time() - journal.open[1]))
        raise
    journal.add(record)
    # What is beaten now stays beaten, whatever the goal: its files are not wanted any more.
    bench.clean([entry.task for entry in front(candidates(journal.records))])
