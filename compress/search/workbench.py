"""Makes the candidates of a search with the very stages that make artefacts, and measures what they made.

Only the training and validation splits are read. Whatever is made is written atomically into a folder whose name says
all about it, so what is there is not made again.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from compress.export import export
from compress.prune.stage import prunable, prune
from compress.quantize.stage import quantize
from compress.recalibrate import batch_norms, recalibrate
from compress.recover import recover
from compress.search.candidates import BF16, BF16_ENGINE, FLOAT, INT8, Candidate, Measured
from compress.search.trials import SCALES
from zoo.artefact.card import Card, Input, LineageEntry, Metrics, advance
from zoo.artefact.engines.choice import VARIABLE
from zoo.artefact.engines.runtimes import lacking, preference
from zoo.artefact.latency import LatencyConfig, latencies
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, GRAPH, code_commit, sha256_file, write_atomically
from zoo.base.statistics.intervals import FEWEST
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages
from zoo.networks.checkpoint import load, read_card, save
from zoo.networks.registry import count_macs
from zoo.networks.sizes import smaller_size
from zoo.training.evaluate import accuracy, file_logits, torch_logits
from zoo.training.loop.config import FitConfig
from zoo.training.recipe import PruneConfig, QuantizeConfig, RecalibrateConfig, RecoverConfig
from zoo.training.stage import measured

__all__ = ["Settings", "Workbench", "copy"]

_REFERENCE = "parent.onnx"
_SAMPLE = 128
"""Validation images by which the speed of training is guessed."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How candidates are made; with other settings they would be others."""

    fit: FitConfig
    """Of recovery; each candidate has its own number of epochs."""
    seed: int = 0
    prune: PruneConfig = dataclasses.field(default_factory=PruneConfig)
    recalibrate: RecalibrateConfig = dataclasses.field(default_factory=RecalibrateConfig)
    recover: RecoverConfig = dataclasses.field(default_factory=RecoverConfig)
    quantize: QuantizeConfig = dataclasses.field(default_factory=lambda: QuantizeConfig(method="static"))
    """Dynamic INT8 answers differently in other batches."""
    latency: LatencyConfig = dataclasses.field(default_factory=lambda: LatencyConfig(rounds=FEWEST, seconds=0.2))


class Workbench:
    """Makes and measures candidates in a folder of its own.

    `sizes` are the inputs that the network takes, by scale; `refusal` says why it cannot be pruned, if it cannot.
    """

    def __init__(self, source: Path, folder: Path, settings: Settings, dataset: Dataset, *, name: str) -> None:
        """Look at the artefact.

        Args:
            source: its checkpoint.
            folder: gets a folder per network.
            settings: how candidates are made.
            dataset: trains, calibrates and validates them.
            name: of the artefact that one of them will be.
        """
        self.source, self.folder, self.settings, self.dataset, self.name = source, folder, settings, dataset, name
        model, self.card = load(source)
        spec = self.card.use.input
        smaller = {scale: smaller_size(model, spec, scale) for scale in SCALES if scale != 1}
        self.sizes = {1.0: spec.size} | {scale: size for scale, size in smaller.items() if size}
        self._normed = bool(batch_norms(model))
        self.refusal = ""
        try:
            prunable(model, spec)
        except ArtefactError as error:
            self.refusal = str(error)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that can be computed here."""
        allowed = preference(os.environ.get(VARIABLE, ""))
        bf16 = not lacking(BF16_ENGINE) and (not allowed or BF16_ENGINE in allowed)
        return (FLOAT, INT8, BF16) if bf16 else (FLOAT, INT8)

    @property
    def itself(self) -> Candidate:
        """The artefact as it is."""
        return Candidate(size=self.sizes[1.0])

    def place(self, candidate: Candidate) -> Path:
        """The folder of the candidate's files."""
        return self.folder / candidate.network

    def epoch_seconds(self) -> float:
        """About the time of an epoch of recovery: the teacher's pass forward, the student's, and two backward."""
        model, card = load(self.source)
        images = DecodedImages(self.dataset.splits["validation"][:_SAMPLE], card.use.input)
        torch_logits(model, images)
        begin = time.perf_counter()
        torch_logits(model, images)
        splits = self.dataset.splits
        return (time.perf_counter() - begin) / len(images) * (4 * len(splits["train"]) + len(splits["validation"]))

    def screen(self, candidate: Candidate) -> tuple[int, Metrics]:
        """Multiply-accumulates and validation accuracy of a pruned network before recovery; errors as measure."""
        card = read_card(self._screened(candidate))
        metrics = card.metrics("validation")
        assert metrics is not None
        return card.inform.macs, metrics

    def measure(self, candidate: Candidate, engine: str | None) -> Measured:
        """Make a candidate, read its accuracy and time it beside the parent.

        Args:
            candidate: what to make.
            engine: what computes the parent; None: the candidate is the parent.

        Raises:
            ArtefactError, CheckError, TrainingError, UsageError: it cannot be made; or the artefact itself cannot be
                exported, or the data cannot be read.
        """
        place = self.place(candidate)
        checkpoint, exact, path = place / CHECKPOINT, place / GRAPH, place / candidate.file
        training = self._make(candidate, checkpoint)
        if not exact.is_file():
            export(checkpoint, exact, dataset=self.dataset)
        if not path.is_file():
            self._quantize(exact, path)
        samples = self.dataset.splits["validation"]
        answered = file_logits(path, samples, engine=BF16_ENGINE if candidate.precision == BF16 else None)
        truth = np.array([sample.label for sample in samples], dtype=np.int64)
        beside = {path: answered.engine} if engine is None else {self.reference(): engine, path: answered.engine}
        times = latencies(list(beside), self.settings.latency, engines=beside)
        base, *_, own = (
            tuple(round(median(samples), 5) for samples in rounds) for rounds in (*times.values(), times[path])
        )
        return Measured(
            candidate=candidate,
            metrics=accuracy(
                answered.logits, truth, dataset=self.dataset.name, split="validation", engine=answered.engine
            ),
            right=np.packbits(answered.logits.argmax(axis=1) == truth).tobytes().hex(),
            macs=answered.card.inform.macs,
            bytes=path.stat().st_size,
            files={file.name: sha256_file(file) for file in (checkpoint, exact, path)},
            ms=own,
            parent_ms=base,
            training_seconds=training,
        )

    def reference(self) -> Path:
        """A copy of the artefact's own FP32 graph; exported again where a finished search has deleted it."""
        reference, exact = self.folder / _REFERENCE, self.place(self.itself) / GRAPH
        if not reference.is_file():
            if not exact.is_file():
                self._make(self.itself, exact.with_name(CHECKPOINT))
                export(exact.with_name(CHECKPOINT), exact, dataset=self.dataset)
            copy(exact, reference)
        return reference

    def clean(self, keep: Sequence[Candidate]) -> None:
        """Delete the files of all networks but those of `keep`."""
        wanted = {_REFERENCE, *(self._start(size).name for size in self.sizes.values())}
        for candidate in (self.itself, *keep):
            wanted |= {self.place(candidate).name, self._start(candidate.size, candidate.pruned).name}
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name not in wanted:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _make(self, candidate: Candidate, target: Path) -> float:
        """The checkpoint of a candidate's network, made if it is not there; the seconds of training that it took."""
        if target.is_file():
            return 0.0
        begin = self._screened(candidate)
        if not candidate.epochs:
            copy(begin, target)
            return 0.0
        fit = dataclasses.replace(self.settings.fit, epochs=candidate.epochs, seed=self.settings.seed)
        config = dataclasses.replace(self.settings.recover, fit=fit)
        teacher = self._whole(candidate.size)
        return recover(begin, teacher, target, config, dataset=self.dataset, test=False).seconds

    def _screened(self, candidate: Candidate) -> Path:
        """The pruned and recalibrated checkpoint, made if it is not there."""
        if not candidate.importance:
            return self._whole(candidate.size)
        target = self._start(candidate.size, candidate.pruned)
        if not target.is_file():
            pruned, seed = target.with_suffix(".draft"), self.settings.seed
            config = dataclasses.replace(
                self.settings.prune, macs=candidate.ratio, importance=candidate.importance, seed=seed
            )
            prune(self._whole(candidate.size), pruned, config, dataset=self.dataset, name=self.name)
            if self._normed:
                recalibrate(pruned, target, self.settings.recalibrate, dataset=self.dataset)
                pruned.unlink()
            else:
                pruned.replace(target)
        return target

    def _whole(self, size: tuple[int, int]) -> Path:
        """The artefact under the new one's name, with an input of this size; made if it is not there."""
        target = self._start(size)
        if not target.is_file():
            model, card = load(self.source)
            card = dataclasses.replace(card, name=self.name)
            if size != card.use.input.size:
                card = _resized(card, size, sha256_file(self.source))
                macs = count_macs(model, card.use.input)
                card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, macs=macs))
                card = measured(model, card, self.dataset, test=False)
            save(model, card, target)
        return target

    def _start(self, size: tuple[int, int], pruned: str = "") -> Path:
        """The file of a network before recovery."""
        return self.folder / f"{pruned or f'whole-{size[0]}x{size[1]}'}.safetensors"

    def _quantize(self, exact: Path, target: Path) -> None:
        # Half a point or one image against its own float file, whatever the goal: nodes that cost more stay in float.
        least = 100 / len(self.dataset.splits["validation"])
        config = dataclasses.replace(
            self.settings.quantize, max_drop=max(0.5, least), keep="any", seed=self.settings.seed
        )
        quantize(exact, target, config, dataset=self.dataset, name=f"{self.name}-int8", timed=False)


def _resized(card: Card, size: tuple[int, int], digest: str) -> Card:
    """The card of the same network with a smaller input; what is shown of an image stays."""
    spec = card.use.input
    entry = LineageEntry(
        stage="resize", config={"size": list(size), "before": list(spec.size)}, parent=digest, commit=code_commit()
    )
    card = advance(card, entry)
    return dataclasses.replace(card, use=dataclasses.replace(card.use, input=_at(card.use.input, size)))


def _at(spec: Input, size: tuple[int, int]) -> Input:
    edge = spec.resize.edge
    if edge is not None:
        least = min(size) if spec.resize.rule == "cover" else max(size)
        edge = max(least, round(edge * min(size) / min(spec.size)))
    return dataclasses.replace(spec, size=size, resize=dataclasses.replace(spec.resize, edge=edge))


def copy(source: Path, target: Path) -> None:
    """Copy a file atomically."""

    def fill(draft: Path) -> None:
        shutil.copyfile(source, draft)

    write_atomically(target, fill)
