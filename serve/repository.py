"""The artefacts of the output folder as models with names, loaded when they are first asked for.

A model is named by its folder: `output/vit/model.onnx` is `vit`, `output/vit/model.int8.onnx` is `vit-int8`; where
that name belongs to a folder `vit-int8`, it is `vit/model.int8.onnx`. The folders are looked through once, at start.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from zoo.card import Card, Metrics
from zoo.errors import ArtefactError, PocketzooError, unknown_name
from zoo.files import GRAPH, INT8_GRAPH, sha256_file
from zoo.graph import read_card
from zoo.predictor import Predictor

__all__ = ["Repository", "Served", "scan"]


class Served:
    """One ONNX file: its card is read at once, the model when :meth:`predictor` is first called.

    A file that cannot be served keeps its `error`; putting a better one in its place takes a restart.
    """

    def __init__(self, name: str, path: Path, *, threads: int | None = None) -> None:
        self.name = name
        self.path = path
        self.bytes = path.stat().st_size
        self.card: Card | None = None
        self.error: Exception | None = None
        self._threads = threads
        self._lock = threading.Lock()
        self._predictor: Predictor | None = None
        self._digest: str | None = None
        try:
            self.card = read_card(path)
        except PocketzooError as error:
            self.error = error

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._predictor is not None

    @property
    def validation(self) -> Metrics | None:
        """The accuracy on the validation split, where this file was measured."""
        return self.card.metrics("validation") if self.card else None

    @property
    def reason(self) -> str | None:
        """Why it cannot be served, with paths as seen from the output folder: clients read this."""
        return str(self.error).replace(f"{self.path.parent.parent}{os.sep}", "") if self.error else None

    def digest(self) -> str | None:
        """SHA-256 of the loaded file, else of the file as it is on disk; None where it cannot be read."""
        if self._predictor is not None:
            return self._predictor.digest
        if self._digest is None:
            with contextlib.suppress(OSError):
                self._digest = sha256_file(self.path)
        return self._digest

    def predictor(self) -> Predictor:
        """The loaded and checked model; threads that ask meanwhile wait for the one that loads it.

        Raises:
            PocketzooError: it cannot be loaded, or failed its golden self-check; the same error each time.
        """
        with self._lock:
            if self._predictor is None and self.error is None:
                try:
                    self._predictor = Predictor(self.path, threads=self._threads)
                except (PocketzooError, OSError) as error:
                    self.error = error
                _give_back_memory()
            if self._predictor is None:
                raise ArtefactError(f"the model {self.name!r} cannot be served: {self.reason}") from self.error
            return self._predictor


class Repository:
    """The served models by name, of which one is the default."""

    def __init__(self, models: Mapping[str, Served], *, default: str | None = None) -> None:
        """Load the default model, which is `default`, else the best that can be loaded.

        The best has the highest validation accuracy, then the smallest file. One that was not measured comes last.

        Raises:
            UsageError: `default` is not a model.
            ArtefactError: the default model, or without a `default` every model, fails to load or its self-check.
        """
        self.models = models
        self.default = self._load_named(default) if default else self._load_best()

    def get(self, name: str | None) -> Served:
        """The model of that name, or the default for None.

        Raises:
            UsageError: there is none; lists close matches.
        """
        try:
            return self.models[name or self.default]
        except KeyError:
            raise unknown_name("model", name or self.default, self.models) from None

    def _load_named(self, name: str) -> str:
        if name not in self.models:
            raise unknown_name("model in POCKETZOO_DEFAULT_MODEL", name, self.models)
        self.models[name].predictor()
        return name

    def _load_best(self) -> str:
        for served in sorted(self.models.values(), key=_rank):
            with contextlib.suppress(ArtefactError):
                served.predictor()
                return served.name
        reasons = "; ".join(f"{served.name}: {served.reason}" for served in self.models.values())
        raise ArtefactError(f"none of the {len(self.models)} artefacts can be served: {reasons}")


def scan(root: Path, *, threads: int | None = None) -> dict[str, Served]:
    """The models of the folders in `root`, by name, in alphabetical order; hidden folders are left out.

    Raises:
        ArtefactError: there is none; says which command makes them.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    folders = [path for path in folders if not path.name.startswith(".")]
    paths = {folder.name: folder / GRAPH for folder in folders if (folder / GRAPH).is_file()}
    for folder in folders:
        if (folder / INT8_GRAPH).is_file():
            name = f"{folder.name}-int8"
            paths[name if name not in paths else f"{folder.name}/{INT8_GRAPH}"] = folder / INT8_GRAPH
    if not paths:
        raise ArtefactError(
            f"no artefact to serve: expected {root}/<name>/{GRAPH} or {INT8_GRAPH}, found neither; "
            "`make train compress export` writes them"
        )
    return {name: Served(name, paths[name], threads=threads) for name in sorted(paths)}


def _give_back_memory() -> None:
    # A file is parsed twice, for its card and by ONNX Runtime, and glibc keeps the freed buffers: 90 MB after loading
    # a ResNet-50. Other C libraries have no malloc_trim; then nothing is lost but memory.
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _rank(served: Served) -> tuple[float, int, str]:
    measured = served.validation
    return (-measured.top1 if measured else 1.0, served.bytes, served.name)
