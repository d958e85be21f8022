"""A network that exists in numbers only, so that a whole search over it takes a second."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.search.candidates import BF16, FLOAT, INT8, Candidate, Measured
from compress.search.workbench import Settings, Workbench, copy
from tests.zoo.factories import write_artefact
from zoo.artefact.card import Metrics
from zoo.base.errors import UsageError
from zoo.base.files import CHECKPOINT, GRAPH, sha256_file, write_bytes
from zoo.data.dataset import Dataset

SIZES = {1.0: (28, 28), 0.86: (24, 24), 0.71: (20, 20)}
N = 400


class Killed(BaseException):
    """The process is gone."""


@dataclass
class World:
    """Accuracy falls below the ratio `edge`, and with the input; time is that of the multiply-accumulates."""

    edge: float = 0.3
    sizes: dict[float, tuple[int, int]] = field(default_factory=lambda: dict(SIZES))
    precisions: tuple[str, ...] = (FLOAT, INT8, BF16)
    refusal: str = ""
    seconds: float = 20.0
    epoch_seconds: float = 5.0
    now: float = 0.0
    """The clock."""
    fails: str = ""
    """Candidates of this precision cannot be made."""
    done: list[Candidate] = field(default_factory=list)
    """What was measured, in order."""
    stop: dict[int, type[BaseException]] = field(default_factory=dict)
    """What happens instead of the measurement of this number."""

    def hits(self, candidate: Candidate) -> int:
        worse = 0.0 if candidate.importance in ("", "taylor") else 0.06
        lost = 2 * max(0.0, self.edge + worse - candidate.ratio) * (1.0 if candidate.epochs else 2.0)
        lost += 0.1 * (28 - candidate.size[0]) / 28 + (0.0025 if candidate.precision == INT8 else 0.0)
        return round(N * max(0.1, 0.95 - lost))

    def share(self, candidate: Candidate) -> float:
        pixels = (candidate.size[0] / 28) ** 2
        return (0.1 + 0.9 * candidate.ratio) * pixels * {FLOAT: 1.0, BF16: 0.8, INT8: 0.5}[candidate.precision]

    def macs(self, candidate: Candidate) -> int:
        return int(1e6 * candidate.ratio * (candidate.size[0] / 28) ** 2)

    def metrics(self, hits: int) -> Metrics:
        top1 = hits / N
        low, high = max(0.0, top1 - 0.02), min(1.0, top1 + 0.02)
        return Metrics(dataset="made up", split="validation", n=N, top1=top1, low=low, high=high, engine="onnxruntime")

    def measured(self, candidate: Candidate, files: dict[str, str]) -> Measured:
        hits, share = self.hits(candidate), self.share(candidate)
        return Measured(
            candidate=candidate,
            metrics=self.metrics(hits),
            right=f"{(1 << hits) - 1:x}",
            macs=self.macs(candidate),
            bytes=int(1e7 * candidate.ratio) // (4 if candidate.precision == INT8 else 1),
            files=files,
            ms=tuple(10 * share * (1 if share == 1 else 1 + 0.01 * step) for step in range(6)),
            parent_ms=(10.0,) * 6,
            training_seconds=self.epoch_seconds * candidate.epochs,
        )


class Pretended(Workbench):
    """Numbers of a world; the files are tiny graphs that really answer."""

    world: World
    example: Path
    """A graph."""

    def __init__(self, source: Path, folder: Path, settings: Settings, dataset: Dataset, *, name: str) -> None:
        self.source, self.folder, self.settings, self.dataset, self.name = source, folder, settings, dataset, name
        self.sizes, self.refusal = self.world.sizes, self.world.refusal

    @property
    def precisions(self) -> tuple[str, ...]:
        return self.world.precisions

    def epoch_seconds(self) -> float:
        return self.world.epoch_seconds

    def reference(self) -> Path:
        return self.example

    def screen(self, candidate: Candidate) -> tuple[int, Metrics]:
        self.world.now += 1
        loss = 40 if candidate.ratio < 0.3 or candidate.importance == "fpgm" else 0
        return self.world.macs(candidate), self.world.metrics(self.world.hits(candidate) - loss)

    def measure(self, candidate: Candidate, engine: str | None) -> Measured:
        assert engine == (None if candidate == self.itself else "onnxruntime")
        if error := self.world.stop.pop(len(self.world.done), None):
            self.world.now += 7
            raise error
        self.world.done.append(candidate)
        self.world.now += self.world.seconds + candidate.epochs * self.world.epoch_seconds
        if candidate.precision == self.world.fails:
            raise UsageError("cannot be made")
        place = self.place(candidate)
        write_bytes(place / CHECKPOINT, candidate.network.encode())
        for name in {GRAPH, candidate.file}:
            copy(self.example, place / name)
        names = {CHECKPOINT, GRAPH, candidate.file}
        return self.world.measured(candidate, {name: sha256_file(place / name) for name in sorted(names)})


def bench_of(world: World, folder: Path, **attributes: Any) -> type[Pretended]:
    """A class of benches in a world."""
    example = folder / "example" / GRAPH
    if not example.is_file():
        write_artefact(example)
    return type("Bench", (Pretended,), {"world": world, "example": example, **attributes})
