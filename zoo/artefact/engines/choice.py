"""Which engine answers for a file: the one that is named, or the fastest that repeats its golden answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from zoo.artefact.card import Card
from zoo.artefact.engines.golden import answer_of, check_golden
from zoo.artefact.engines.runtimes import ENGINES, REFERENCE, Engine, How, default_providers, lacking, preference
from zoo.artefact.engines.speed import Speed, measure, recall, remember
from zoo.base.errors import ArtefactError, CheckError, UsageError
from zoo.base.machine import installed_version, processor

__all__ = ["AUTOMATIC", "VARIABLE", "Chosen", "File", "choose"]

VARIABLE = "POCKETZOO_ENGINE"
AUTOMATIC = "openvino"
"""What `auto` weighs against ONNX Runtime. bfloat16 is another precision, which only who knows the file can accept."""


@dataclass(frozen=True, kw_only=True)
class File:
    """What an engine is chosen for."""

    path: Path
    card: Card
    digest: str
    """SHA-256."""
    threads: int
    """Of one inference."""
    callers: int = 1
    """Inferences at the same time."""
    providers: Sequence[str] | None = None
    """ONNX Runtime's execution providers; given, no other engine can be meant."""
    check: bool = True
    """Whether the golden answer is compared. Without, the file is a draft, of which no measurement is kept."""

    @property
    def how(self) -> How:
        """For an engine."""
        return How(threads=self.threads, callers=self.callers, providers=self.providers)

    def load(self, name: str) -> Engine:
        """The engine with this file, checked."""
        engine = ENGINES[name](self.path, self.card, self.how)
        if self.check:
            check_golden(engine, self.card, self.path)
        return engine

    def lacks(self, name: str) -> str:
        """Why an engine cannot answer for this file, after its name; empty if nothing speaks against it."""
        if reason := lacking(name):
            return reason
        golden = self.card.use.golden
        if golden is not None and answer_of(golden, name) is None:
            return (
                "has no golden answer in the file: it was not installed when the file was written, or did not compute "
                "the same there; export it again"
            )
        return ""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The engine, loaded."""

    engine: Engine
    reason: str
    """One sentence that begins with its name."""


def choose(file: File, wanted: str | None = None) -> Chosen:
    """The engine for a file.

    Args:
        file: what to load.
        wanted: `auto`, a name of ENGINES, or several, separated by commas, of which the first that is installed and has
            a golden answer in the file is taken; None: POCKETZOO_ENGINE, else `auto`.

    Raises:
        UsageError: an unknown name, or none of those that are named can answer.
        ArtefactError: the file cannot be loaded, or has no golden answer.
        CheckError: a named engine, or under `auto` ONNX Runtime, does not repeat its golden answer.
    """
    if file.providers is not None:
        return Chosen(engine=file.load(REFERENCE), reason=f"{REFERENCE}: asked for by its providers")
    source = "asked for" if wanted else f"asked for with {VARIABLE}"
    names = preference(wanted or os.environ.get(VARIABLE, ""))
    return _named(file, names, source) if names else _fastest(file)


def _named(file: File, names: Sequence[str], source: str) -> Chosen:
    passed: list[str] = []
    for name in names:
        if reason := file.lacks(name):
            passed.append(f"{name} {reason}")
            continue
        return Chosen(engine=file.load(name), reason="; ".join([f"{name}: {source}", *passed]))
    raise UsageError(f"{file.path}: no engine that was {source} can answer: {'; '.join(passed)}; or name {REFERENCE}")


def _fastest(file: File) -> Chosen:
    if reason := file.lacks(AUTOMATIC) if file.card.use.golden else "has no golden answer yet":
        return Chosen(engine=file.load(REFERENCE), reason=f"{REFERENCE}: {AUTOMATIC} {reason}")
    here = _machine(file.threads)
    known = recall(file.digest, here)
    on_cpu = default_providers()[0] == "CPUExecutionProvider"
    with ThreadPoolExecutor(1) as beside:  # each compiles the graph, mostly outside of Python
        loading = beside.submit(file.load, AUTOMATIC) if on_cpu and (known is None or known.faster) else None
        reference = None if loading and known else file.load(REFERENCE)
        if reference and reference.on_gpu:
            return Chosen(engine=reference, reason=f"{REFERENCE}: this machine answers on its GPU")
        if reference and known:
            return _kept(reference, known)
        try:
            other = loading.result() if loading else file.load(AUTOMATIC)
        except (ArtefactError, CheckError) as error:
            return Chosen(engine=reference or file.load(REFERENCE), reason=f"{REFERENCE}: {error}")
    if reference is None:
        assert known is not None
        return Chosen(engine=other, reason=f"{other.name}: {known.sentence}")
    known = measure(reference, other, file.card)
    if file.check:
        remember(file.digest, here, known)
    return Chosen(engine=other, reason=f"{other.name}: {known.sentence}") if known.faster else _kept(reference, known)


def _kept(reference: Engine, known: Speed) -> Chosen:
    return Chosen(engine=reference, reason=f"{reference.name}: {known.engine} is {known.sentence}")


def _machine(threads: int) -> dict[str, Any]:
    """What speed depends on besides the file."""
    versions = {REFERENCE: onnxruntime.__version__, AUTOMATIC: installed_version(AUTOMATIC)}
    return processor() | {"versions": versions, "threads": threads}
