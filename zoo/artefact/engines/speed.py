"""How much faster than ONNX Runtime another engine is with one file on this machine, measured once and remembered.

That is a fact of the machine and not of the file, so it is kept in the user's folder: zoo.base.files.cache_folder.
"""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zoo.artefact.card import Card
from zoo.artefact.engines.runtimes import Engine
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError
from zoo.base.files import cache_folder, write_bytes
from zoo.base.statistics.intervals import ratio

__all__ = ["Speed", "forget", "measure", "recall", "remember"]

_ROUNDS = 5
_LEAST_ROUNDS = 3
_TURN_SECONDS = 0.05
_MOST_SECONDS = 5.0
"""Until so much time is gone; a network that takes seconds gets _LEAST_ROUNDS."""
_CLEAR = 1.2
"""How far from 1 the ratio of each of _LEAST_ROUNDS must be to be enough: a server waits for this when it starts."""
_REST_SECONDS = 0.005
"""Between turns: threads of the engine whose turn is over spin for a while on the cores of the other one."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One image at a time, beside ONNX Runtime."""

    engine: str
    ratio: float
    """How many times as fast: median over the rounds."""
    low: float
    high: float
    """The rounds' range."""
    measured: str
    """Day, UTC."""

    @property
    def faster(self) -> bool:
        """Whether that is more than noise."""
        return self.low > 1

    @property
    def sentence(self) -> str:
        """In numbers."""
        spread = f"{self.low:.2f} to {self.high:.2f}, measured {self.measured}"
        return f"{self.ratio:.2f}x as fast as onnxruntime here ({spread})"


def measure(reference: Engine, other: Engine, card: Card) -> Speed:
    """Time two loaded engines in turn, in this process."""
    images = np.random.default_rng(0).standard_normal((1, *card.use.input.shape), dtype=np.float32)
    begin = time.perf_counter()
    rounds: dict[str, list[float]] = {reference.name: [], other.name: []}
    for number in range(_ROUNDS):
        if number >= _LEAST_ROUNDS and (time.perf_counter() - begin > _MOST_SECONDS or _is_clear(*rounds.values())):
            break
        for engine in (reference, other):
            rounds[engine.name].append(_turn(engine, images))
    found = ratio(rounds[reference.name], rounds[other.name])
    assert found.low is not None and found.high is not None
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    low, high = round(found.low, 3), round(found.high, 3)
    return Speed(engine=other.name, ratio=round(found.value, 3), low=low, high=high, measured=today)


def _is_clear(reference: Sequence[float], other: Sequence[float]) -> bool:
    """Whether every round says the same, by so much that more of them would not change it."""
    ratios = [one / two for one, two in zip(reference, other, strict=True)]
    return min(ratios) > _CLEAR or max(ratios) < 1 / _CLEAR


def _turn(engine: Engine, images: Any) -> float:
    """Median seconds of an inference."""
    time.sleep(_REST_SECONDS)
    engine.logits(images)
    taken: list[float] = []
    while len(taken) < 2 or (sum(taken) < _TURN_SECONDS and len(taken) < 1000):
        begin = time.perf_counter()
        engine.logits(images)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def recall(digest: str, machine: Mapping[str, Any]) -> Speed | None:
    """What was measured of a file on a machine like this; None: nothing that can be read.

    Args:
        digest: SHA-256 of the file.
        machine: everything that its speed depends on, in JSON's types.
    """
    for entry in _entries(digest):
        if isinstance(entry, dict) and entry.get("machine") == machine:
            try:
                return to_dataclass(Speed, entry.get("speed"), "speed")
            except DocumentError:
                return None
    return None


def remember(digest: str, machine: Mapping[str, Any], speed: Speed) -> None:
    """Keep a measurement, atomically; where that cannot be written it is measured again the next time."""
    folder = cache_folder()
    if folder is None:
        return
    others = [entry for entry in _entries(digest) if isinstance(entry, dict) and entry.get("machine") != machine]
    entries = [*others, {"machine": machine, "speed": asdict(speed)}]
    try:
        write_bytes(folder / "engines" / f"{digest}.json", json.dumps(entries, indent=1).encode())
    except ArtefactError:
        return


def forget(digest: str) -> None:
    """Measure a file anew the next time it is loaded."""
    if (folder := cache_folder()) is not None:
        try:
            (folder / "engines" / f"{digest}.json").unlink(missing_ok=True)
        except OSError:
            return


def _entries(digest: str) -> list[Any]:
    folder = cache_folder()
    if folder is None:
        return []
    try:
        found = json.loads((folder / "engines" / f"{digest}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []
