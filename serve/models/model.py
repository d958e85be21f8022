"""One version of one artefact: read once, checked, warm, and from then on immutable."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from serve.models.folder import VERSION_DIGITS
from serve.models.known import stamp
from zoo.artefact.card import Card
from zoo.artefact.predictor import Predictor, default_providers
from zoo.base.errors import ArtefactError, PocketzooError
from zoo.base.files import sha256_file
from zoo.base.machine import cores, give_back_freed_memory

__all__ = ["Model", "load_model"]

_TWICE_IN_MEMORY = 64 << 20
"""Larger files, in bytes, get one session: a second would take as much memory again."""
_WARM_UPS = 2


@dataclass(slots=True, weakref_slot=True, eq=False, kw_only=True)
class Model:
    """One version of one artefact, in memory."""

    name: str
    """What a request's `model` says."""
    alone: Predictor = field(repr=False)
    """Computes one request at a time, with all threads."""
    shared: Predictor = field(repr=False)
    """Computes beside others, with one thread; may be the same."""
    bytes: int
    """Size of the file."""
    used: float = field(default_factory=time.monotonic, repr=False)
    """When it was last asked for, in seconds of time.monotonic."""
    batched: bool = False
    """Whether batches are worth it; decided before it answers."""
    card: Card = field(init=False, repr=False)
    digest: str = field(init=False, repr=False)
    version: str = field(init=False)
    """The first digits of the digest: what names this version in requests."""

    def __post_init__(self) -> None:
        self.card, self.digest = self.alone.card, self.alone.digest
        self.version = self.digest[:VERSION_DIGITS]

    @property
    def memory(self) -> int:
        """Bytes that it takes, about: its weights, in each session."""
        return self.bytes if self.alone is self.shared else 2 * self.bytes


def load_model(
    name: str,
    path: Path,
    *,
    threads: int | None = None,
    callers: int = 1,
    engine: str | None = None,
    checked: str | None = None,
    once: bool = False,
) -> Model:
    """Load the file at `path`: its card, its golden self-check and a warm-up, in every session it will serve from.

    There is one session instead of two where a second would not be faster or would take too much memory: with one
    thread, on a GPU, or with a file of more than 64 MB.

    Args:
        name: what the model is called.
        path: an ONNX file with a card.
        threads: threads of an inference that runs alone; default: the cores this process may use.
        callers: inferences of one thread that run at the same time.
        engine: see zoo.artefact.predictor.Predictor.
        checked: see zoo.artefact.predictor.Predictor.
        once: whether one session is enough, as it is to check the file.

    Raises:
        UsageError: an engine that cannot be had.
        ArtefactError: there is no such file, it cannot be run, or it was changed while it was read.
        CardError: no card, or one that contradicts the graph.
        CheckError: the golden self-check failed.
    """
    try:
        return _load(name, path, threads or cores(), callers, engine, checked, once)
    except PocketzooError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no common public base class
        raise ArtefactError(f"{path}: cannot be loaded: {error}") from error
    finally:
        give_back_freed_memory(collect=False)


def _load(
    name: str, path: Path, threads: int, callers: int, engine: str | None, checked: str | None, once: bool
) -> Model:
    before = stamp(path)
    one = once or threads == 1 or before[1] > _TWICE_IN_MEMORY or default_providers()[0] != "CPUExecutionProvider"
    alone = Predictor(path, threads=threads, callers=callers if threads == 1 else 1, engine=engine, checked=checked)
    # One network, one way of computing it: which slot is free must not decide about an answer.
    shared = alone if one else alone.with_threads(1, callers=callers)
    if stamp(path) != before or alone.digest != sha256_file(path):
        raise ArtefactError(f"{path}: was changed while it was read; it is read again when it is complete")
    nothing = np.zeros((1, *alone.card.use.input.shape), np.float32)
    for predictor in {alone, shared}:
        for _ in range(_WARM_UPS):
            predictor.logits(nothing)
    return Model(name=name, alone=alone, shared=shared, bytes=before[1])
