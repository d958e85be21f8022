"""The artefacts of the models' folder and their names.

A model is named by its folder: `output/vit/model.onnx` is `vit`, `output/vit/model.int8.onnx` is `vit-int8` and
`output/vit/model.fp16.onnx` is `vit-fp16`; where that name belongs to another folder, it is `vit/model.int8.onnx`.

Folders and files may be links, as deployments mount them, also to places outside of the models' folder. A link is
followed only to a regular file that itself has one of these three names: anything else that somebody links into the
folder (a device, a pipe, a file of keys) is never opened, so that neither its size nor its digest is published. A
folder whose name no route can express is not served either; :func:`look_through` says why.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from serve.models.known import Known, Stamp, stamp
from zoo.artefact.card import Card
from zoo.artefact.glance import glance_at_card
from zoo.base.errors import ArtefactError, PocketzooError
from zoo.base.files import GRAPH, HALF_GRAPH, INT8_GRAPH, sha256_file
from zoo.base.names import shown_name, unfit_name

__all__ = ["SUFFIXES", "VERSION_DIGITS", "Artefact", "Found", "best_first", "look_through", "no_artefact", "scan"]

VERSION_DIGITS = 12
"""A version is that many of the first hexadecimal digits of the file's SHA-256."""

SUFFIXES = {GRAPH: "", INT8_GRAPH: "-int8", HALF_GRAPH: "-fp16"}
"""Every file that is served -> what its model's name has after that of the folder."""


class Artefact:
    """One ONNX file as it was when the folder was looked through; its card and digest are read when asked for."""

    def __init__(self, name: str, path: Path, known: Known | None = None) -> None:
        """Look at the file, without reading it; `known` may have its digest.

        Raises:
            OSError: there is no such file.
        """
        self.name = name
        self.path = path
        self.stamp: Stamp = stamp(path)
        self._card: Card | PocketzooError | None = None
        self._digest: str | None = None
        self._known = known

    @property
    def file(self) -> str:
        """The path below the models' folder."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def state(self) -> tuple[Path, Stamp]:
        """Another one means that there is something new behind the name."""
        return self.path, self.stamp

    def expire(self) -> None:
        """Let the file count as changed when it is looked at next: it could not be read for a passing reason."""
        self.stamp = (0, 0, 0)

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.stamp[1]

    def card(self) -> Card:
        """What the file says about itself, whatever the rest of it is; it is read once.

        Raises:
            PocketzooError: it cannot be read; the same error each time.
        """
        if self._card is None:
            try:
                # It may have become another link since the folder was looked through.
                if reason := _unfit_file(self.path):
                    raise ArtefactError(f"{self.path}: {reason}")
                self._card = glance_at_card(self.path)
            except PocketzooError as error:
                self._card = error
        if isinstance(self._card, PocketzooError):
            raise self._card
        return self._card

    def digest(self) -> str | None:
        """SHA-256 of the file, which is read once; None where it cannot be."""
        if self._digest is None and not _unfit_file(self.path):
            with contextlib.suppress(OSError):
                self._digest = (self._known.digest if self._known else sha256_file)(self.path)
        return self._digest


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is in the models' folder."""

    artefacts: dict[str, Artefact] = field(default_factory=dict)
    """By name, in alphabetical order."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Name of a model, or `folder/file`, in printable characters -> a sentence that says why it is not served."""


def scan(root: Path) -> dict[str, Artefact]:
    """The artefacts of the folders in `root`, by name, in alphabetical order; hidden folders are left out."""
    return look_through(root).artefacts


def look_through(root: Path, known: Known | None = None) -> Found:
    """The artefacts of the folders in `root`, and what is not served of it; hidden folders are left out."""
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return Found()
    paths: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for file, suffix in SUFFIXES.items():
        for folder in folders:
            if not os.path.lexists(folder / file):
                continue
            name = f"{folder.name}{suffix}"
            if reason := unfit_name(name):
                left_out[shown_name(name)] = f"{reason}; rename its folder"
            elif reason := _unfit_file(folder / file):
                left_out[f"{folder.name}/{file}"] = f"{folder.name}/{file}: {reason}"
            else:
                paths[name if name not in paths else f"{folder.name}/{file}"] = folder / file
    found: dict[str, Artefact] = {}
    for name in sorted(paths):
        # It may be gone since the folder was listed.
        with contextlib.suppress(OSError):
            found[name] = Artefact(name, paths[name], known)
    return Found(artefacts=found, left_out=left_out)


def best_first(artefacts: Mapping[str, Artefact]) -> list[str]:
    """Names of models by validation accuracy, then by size of the file; what was not measured or read comes last."""

    def rank(artefact: Artefact) -> tuple[float, int, str]:
        card = _card(artefact)
        measured = card.metrics("validation") if card else None
        return (-measured.top1 if measured else 1.0, artefact.bytes, artefact.name)

    return [artefact.name for artefact in sorted(artefacts.values(), key=rank)]


def _card(artefact: Artefact) -> Card | None:
    try:
        return artefact.card()
    except PocketzooError:
        return None


def _unfit_file(path: Path) -> str | None:
    """Why a file is not to be opened; nothing is opened to find out."""
    try:
        # Path.resolve raises RuntimeError for links in a circle.
        target = Path(os.path.realpath(path, strict=True))
        regular = stat.S_ISREG(target.stat().st_mode)
    except FileNotFoundError:
        return "it is a link to nothing" if path.is_symlink() else "it is gone"
    except OSError as error:
        return f"it cannot be looked at ({error.strerror})"
    if not regular:
        return "expected a regular file, which it is not"
    if target.name != path.name and target.name not in SUFFIXES:
        return f"it is a link to a file of another name; expected one to {', '.join(SUFFIXES)}"
    return None


def no_artefact(root: Path) -> ArtefactError:
    """The error for a folder without any artefact; says which command makes them."""
    return ArtefactError(
        f"no artefact to serve: expected {root}/<name>/{GRAPH}, {INT8_GRAPH} or {HALF_GRAPH}, found none; "
        "`make train compress export` writes them"
    )
