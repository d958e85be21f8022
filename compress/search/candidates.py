"""What a search can make of a network, what came of it, and which of it meets a goal. All accuracies are validation's.

A candidate is one ONNX file and the engine that computes it. Speed is the parent's time over the candidate's, both
measured in the same rounds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from zoo.artefact.card import Metrics
from zoo.base.errors import UsageError
from zoo.base.files import GRAPH, INT8_GRAPH
from zoo.base.statistics.intervals import Ratio, ratio
from zoo.base.statistics.paired import paired_difference

__all__ = ["BF16", "BF16_ENGINE", "FLOAT", "INT8", "PRECISIONS", "Candidate", "Goal", "Measured", "Results"]

FLOAT, INT8, BF16 = PRECISIONS = ("float32", "int8", "bf16")
BF16_ENGINE = "openvino-bf16"
"""Computes the float32 file in bfloat16."""

_TINY = 1e-9
"""Rounding of the points of two counts of images."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to make a network smaller or faster."""

    size: tuple[int, int]
    """Height and width of its input in pixels."""
    ratio: float = 1.0
    """Share of the multiply-accumulates, at its own input size, that is asked to stay; 1: not pruned."""
    importance: str = ""
    """Empty where nothing is pruned."""
    epochs: int = 0
    """Of recovery."""
    precision: str = FLOAT
    """One of PRECISIONS."""

    @property
    def pruned(self) -> str:
        """The network before recovery."""
        what = f"{self.importance}-{self.ratio:.2f}" if self.importance else "unpruned"
        return f"{what}-{self.size[0]}x{self.size[1]}"

    @property
    def network(self) -> str:
        """The network without its precision; the name of the folder of its files."""
        return self.pruned + (f"-e{self.epochs}" if self.epochs else "")

    @property
    def name(self) -> str:
        """Unique within a search."""
        return f"{self.network} {self.precision}"

    @property
    def file(self) -> str:
        """Name of its ONNX file."""
        return INT8_GRAPH if self.precision == INT8 else GRAPH


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A candidate that was made and measured."""

    candidate: Candidate
    metrics: Metrics
    """On the validation split, by the engine that is named there."""
    right: str
    """Hexadecimal, a bit per validation image: whether it is recognised."""
    macs: int
    """Multiply-accumulates of one image, as rounding the widths left them."""
    bytes: int
    """Of the ONNX file."""
    files: Mapping[str, str]
    """Name -> SHA-256 of all files of the artefact: the ONNX file and what it was made from."""
    ms: tuple[float, ...]
    """Median time of one image in each round, in milliseconds."""
    parent_ms: tuple[float, ...]
    """The parent's in the same rounds."""
    training_seconds: float = 0.0
    """Of recovery, over all sessions that it took."""

    @property
    def name(self) -> str:
        """The candidate's."""
        return self.candidate.name

    @property
    def engine(self) -> str:
        """What computes it: a name of zoo.artefact.engines.runtimes."""
        return str(self.metrics.engine)

    @property
    def digest(self) -> str:
        """SHA-256 of the ONNX file."""
        return self.files[self.candidate.file]

    @property
    def hits(self) -> int:
        """Validation images that it recognises."""
        return int(self.right, 16).bit_count()

    @property
    def share(self) -> float:
        """Time of one image as a share of the parent's: the median over the rounds."""
        return statistics.median(own / base for own, base in zip(self.ms, self.parent_ms, strict=True))

    @property
    def speed(self) -> Ratio:
        """How many times as fast as the parent."""
        return ratio(self.parent_ms, self.ms)

    @property
    def megabytes(self) -> float:
        """Size of the file, in millions of bytes."""
        return self.bytes / 1e6


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What is wanted of a candidate."""

    max_drop: float = 0.5
    """Largest loss of validation top-1 against the parent, in points."""
    latency_ms: float | None = None
    """Longest median time of one image."""
    megabytes: float | None = None
    """Largest file, in millions of bytes."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise UsageError(f"--max-drop is in points of top-1, 0 to 100; got {self.max_drop:g}")
        for flag, value, unit in (("--latency-ms", self.latency_ms, "milliseconds"), ("--mb", self.megabytes, "MB")):
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"{flag} must be a positive number of {unit}, got {value:g}")

    @property
    def budgeted(self) -> bool:
        """Whether the most accurate within a budget is wanted; else it is the fastest."""
        return self.latency_ms is not None or self.megabytes is not None


@dataclass(frozen=True)
class Results:
    """All that was measured."""

    entries: tuple[Measured, ...]
    """The artefact itself, as it is, is the first."""

    @property
    def parent(self) -> Measured:
        """The artefact itself."""
        return self.entries[0]

    @cached_property
    def parent_ms(self) -> float:
        """The parent's median time over the whole search: one yardstick, whatever else the machine did meanwhile."""
        return statistics.median(ms for entry in self.entries for ms in entry.parent_ms)

    def ms(self, entry: Measured) -> float:
        """Time of one image in milliseconds."""
        return entry.share * self.parent_ms

    def drop(self, entry: Measured) -> tuple[float, float, float]:
        """Points of top-1 that are lost against the parent, and the 95 % interval: low, high.

        The interval is from the images that only one of both recognises.
        """
        own, other, n = int(entry.right, 16), int(self.parent.right, 16), entry.metrics.n
        gained, lost = (own & ~other).bit_count(), (other & ~own).bit_count()
        middle, spread = paired_difference(n, gained=gained, lost=lost)
        reach = 0.0 if entry == self.parent else 196 * spread
        return 100 * (lost - gained) / n, -100 * middle - reach, -100 * middle + reach

    def front(self) -> list[Measured]:
        """What no other beats: at least as accurate, fast and small, and better in one of the three."""
        worth = {entry.name: (entry.hits, -entry.share, -entry.bytes) for entry in self.entries}

        def beaten(name: str) -> bool:
            others = [other for other in worth.values() if other != worth[name]]
            return any(all(a >= b for a, b in zip(other, worth[name], strict=True)) for other in others)

        return [entry for entry in self.entries if not beaten(entry.name)]

    def misses(self, entry: Measured, goal: Goal) -> dict[str, tuple[float, float]]:
        """The limits that a candidate does not keep: option -> its value, and by which share it is over the limit.

        An excess of accuracy's limit counts relative to at least one point, since 0 is a possible limit.
        """
        values = (
            ("--max-drop", self.drop(entry)[0], goal.max_drop, max(goal.max_drop, 1.0)),
            ("--latency-ms", self.ms(entry), goal.latency_ms, goal.latency_ms),
            ("--mb", entry.megabytes, goal.megabytes, goal.megabytes),
        )
        return {
            flag: (value, (value - limit) / unit)
            for flag, value, limit, unit in values
            if limit is not None and unit is not None and value > limit + _TINY
        }

    def meeting(self, goal: Goal) -> list[Measured]:
        """The candidates that meet the goal, the best first.

        Without a budget the fastest is best, within one the most accurate; then the faster and the smaller.
        """
        found = [entry for entry in self.entries if not self.misses(entry, goal)]
        if goal.budgeted:
            return sorted(found, key=lambda entry: (-entry.hits, entry.share, entry.bytes))
        return sorted(found, key=lambda entry: (entry.share, -entry.hits, entry.bytes))

    def choose(self, goal: Goal) -> Measured | None:
        """The best candidate; None if none meets the goal."""
        return next(iter(self.meeting(goal)), None)

    def remedy(self, goal: Goal) -> str:
        """The options with which the candidate that misses the goal by least would have met it."""
        missed = [self.misses(entry, goal) for entry in self.entries]
        nearest = min(missed, key=lambda flags: sum(over for _, over in flags.values()))
        return " ".join(f"{flag} {_up(value)}" for flag, (value, _) in nearest.items())


def _up(value: float) -> str:
    """Three digits, rounded up, so that the limit is met."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / step - 1e-6) * step:.3g}"
