"""What a search for a smaller artefact knows: tasks, what came of them, and the journal that survives a kill.

A *task* ranks (prune, recalibrate, validate), measures (recover, export, quantize, time) or times once more. A
*candidate* is one ONNX file that a task made. All accuracies are of the validation split.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError
from zoo.base.files import write_bytes

__all__ = ["PARENT", "Candidate", "File", "Journal", "Record", "Task", "candidates", "parent_of", "record_of"]

FLOAT, INT8 = "float32", "int8"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing that a search can do next."""

    kind: str
    """`rank`, `measure` or `retime`."""
    ratio: float = 1.0
    """Share of the multiply-accumulates that is asked to stay; 1: not pruned."""
    importance: str = ""
    """Empty where nothing is pruned."""
    epochs: int = 0
    """Of recovery; 0: none."""
    names: tuple[str, ...] = ()
    """Candidates that are timed once more, side by side."""

    @property
    def name(self) -> str:
        """For people, and of the folder of its files: `l2-0.50-e3`, `parent`, or `retime`, which has none."""
        if self.kind == "retime":
            return self.kind
        if not self.importance:
            return "parent"
        return f"{self.importance}-{self.ratio:.2f}" + (f"-e{self.epochs}" if self.epochs else "")


PARENT = Task(kind="measure")
"""Measures the artefact itself and its INT8 file."""


@dataclass(frozen=True, kw_only=True)
class File:
    """One ONNX file that was measured."""

    precision: str
    """`float32` or `int8`."""
    n: int
    """Validation images."""
    top1: float
    """A fraction, with its Wilson 95 % interval."""
    low: float
    high: float
    bytes: int
    digest: str
    """SHA-256."""
    shares: tuple[float, ...]
    """Median time of one image as a share of the parent's FP32 file's, per round: both took their turn in it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What came of a task."""

    task: Task
    seconds: float
    """Of the session that finished it."""
    macs: int = 0
    """Multiply-accumulates of one image, as rounding the widths left them."""
    parameters: int = 0
    top1: float | None = None
    """Ranking: validation accuracy before recovery."""
    files: tuple[File, ...] = ()
    parent_ms: float | None = None
    """Median time of one image through the parent's FP32 file meanwhile, in milliseconds."""
    training_seconds: float = 0.0
    """Of recovery, over all sessions that it took."""
    timing_seconds: float = 0.0
    """Of them spent on timing."""
    image_seconds: float = 0.0
    """Parent: torch's time for one validation image, from which the first recovery's time is estimated."""
    shares: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Retiming: candidate -> shares as in File."""
    error: str = ""
    """Why there is no result."""
    hopeless: bool = False
    """Whether the network cannot be pruned at all, by no importance and to no ratio."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One ONNX file that may be chosen."""

    task: Task
    precision: str
    n: int
    top1: float
    low: float
    high: float
    macs: int
    parameters: int
    bytes: int
    digest: str
    shares: tuple[float, ...]
    """Of all rounds, as in File; also those of other candidates that compute the same with other numbers."""
    parent_ms: float
    """Median time of the parent's FP32 file over the whole search: one yardstick for candidates that were timed while
    the machine was busier or less busy."""

    @property
    def share(self) -> float:
        """Time of one image as a share of the parent's: the median over the rounds."""
        return statistics.median(self.shares)

    @property
    def ms(self) -> float:
        """Time of one image in milliseconds."""
        return self.share * self.parent_ms

    @property
    def name(self) -> str:
        """Unique within a search."""
        return f"{self.task.name} {self.precision}"

    @property
    def megabytes(self) -> float:
        """Size of the file, in millions of bytes."""
        return self.bytes / 1e6

    @property
    def hits(self) -> int:
        """Validation images that it recognises."""
        return round(self.top1 * self.n)


def record_of(records: Sequence[Record], task: Task) -> Record | None:
    """The newest record of a task."""
    return next((record for record in reversed(records) if record.task == task), None)


def candidates(records: Sequence[Record]) -> list[Candidate]:
    """All files measured so far, the newest measurement of each, in the order in which they were first measured."""
    yardstick = [record.parent_ms for record in records if record.parent_ms is not None]
    if not yardstick:
        return []
    parent_ms = statistics.median(yardstick)
    found: dict[str, Candidate] = {}
    for record in records:
        for file in record.files:
            entry = Candidate(
                task=record.task,
                macs=record.macs,
                parameters=record.parameters,
                parent_ms=parent_ms,
                **{field.name: getattr(file, field.name) for field in dataclasses.fields(file)},
            )
            found[entry.name] = entry
        for name, shares in record.shares.items():
            if name in found:
                found[name] = dataclasses.replace(found[name], shares=(*found[name].shares, *shares))
    return _pooled(list(found.values()))


def parent_of(found: Sequence[Candidate]) -> Candidate:
    """The FP32 file of the artefact itself."""
    return next(entry for entry in found if entry.task == PARENT and entry.precision == FLOAT)


def _pooled(found: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the shares of all that have the same widths: their times differ by noise alone.

    INT8 files may have different nodes left in float, which shows in their size.
    """
    rounds: dict[object, list[float]] = {}
    for entry in found:
        rounds.setdefault(_shape(entry), []).extend(entry.shares)
    return [dataclasses.replace(entry, shares=tuple(rounds[_shape(entry)])) for entry in found]


def _shape(entry: Candidate) -> object:
    return entry.precision, entry.macs, entry.parameters, round(math.log(entry.bytes), 2)


class Journal:
    """The records of one search in a file of JSON lines that may hold those of others.

    A line is there whole or not at all; half a line at the end, as a full disk or another program may leave it, is
    dropped.
    """

    def __init__(self, path: Path, search: str) -> None:
        """Read the file, if there is one.

        Args:
            path: of the file.
            search: identifies the artefact, data and settings; lines of other searches are kept and not read.

        Raises:
            ArtefactError: a line before the last is not one of a journal.
        """
        self.path = path
        self.search = search
        self.records: list[Record] = []
        self.facts: dict[str, Any] = {}
        """What else is known, by name; the newest."""
        self.lost = 0.0
        """Seconds known to be spent on tasks that were interrupted."""
        self.open: tuple[Task, float] | None = None
        """A task that was begun and not finished, and when: Unix time."""
        self._text = _whole_lines(path)
        for number, line in enumerate(self._text.splitlines(), start=1):
            try:
                row = json.loads(line)
                if row["search"] == search:
                    self._take(row["kind"], row["content"])
            except (ValueError, KeyError, TypeError) as error:
                raise ArtefactError(
                    f"{path}:{number}: not a line of a search ({error}); delete the line, or the file to begin anew"
                ) from error

    @property
    def seconds(self) -> float:
        """Time used so far, over all sessions."""
        return self.lost + sum(record.seconds for record in self.records)

    def begin(self, task: Task) -> None:
        """Note that work on a task begins, so that its time counts even if nothing comes of it."""
        self._append("begun", {"task": dataclasses.asdict(task), "time": time.time()})

    def add(self, record: Record) -> None:
        """Keep what came of a task."""
        self._append("record", dataclasses.asdict(record))

    def lose(self, seconds: float) -> None:
        """Count the time of an interrupted task."""
        self._append("lost", round(seconds, 3))

    def note(self, name: str, value: Any) -> None:
        """Keep a fact (JSON)."""
        self._append("fact", {"name": name, "value": value})

    def _append(self, kind: str, content: Any) -> None:
        line = json.dumps({"search": self.search, "kind": kind, "content": content}, sort_keys=True)
        self._text += line + "\n"
        write_bytes(self.path, self._text.encode())
        self._take(kind, json.loads(line)["content"])

    def _take(self, kind: str, content: Any) -> None:
        if kind == "record":
            self.records.append(to_dataclass(Record, content, "record"))
            self.open = None
        elif kind == "begun":
            self.open = to_dataclass(Task, content["task"], "task"), float(content["time"])
        elif kind == "lost":
            self.lost += float(content)
            self.open = None
        elif kind == "fact":
            self.facts[content["name"]] = content["value"]
        else:
            raise DocumentError(f"unknown kind {kind!r}")


def _whole_lines(path: Path) -> str:
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    return text[: text.rfind("\n") + 1]
