"""The artefacts of the models' folder and their names.

A model is named by its folder: `output/vit/model.onnx` is `vit`, `output/vit/model.int8.onnx` is `vit-int8` and
`output/vit/model.fp16.onnx` is `vit-fp16`; where that name belongs to another folder, it is `vit/model.int8.onnx`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from serve.models.model import Stamp, stamp
from zoo.card import Card
from zoo.errors import ArtefactError, PocketzooError
from zoo.files import GRAPH, HALF_GRAPH, INT8_GRAPH, sha256_file
from zoo.graph import read_card

__all__ = ["Artefact", "no_artefact", "scan"]

_SUFFIXES = {INT8_GRAPH: "-int8", HALF_GRAPH: "-fp16"}


class Artefact:
    """One ONNX file as it was when the folder was looked through; its card and digest are read when asked for."""

    def __init__(self, name: str, path: Path) -> None:
        """Look at the file, without reading it.

        Raises:
            OSError: there is no such file.
        """
        self.name = name
        self.path = path
        self.stamp: Stamp = stamp(path)
        self._card: Card | PocketzooError | None = None
        self._digest: str | None = None

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
        """What the file says about itself; it is read once.

        Raises:
            PocketzooError: it cannot be read; the same error each time.
        """
        if self._card is None:
            try:
                self._card = read_card(self.path)
            except PocketzooError as error:
                self._card = error
        if isinstance(self._card, PocketzooError):
            raise self._card
        return self._card

    def digest(self) -> str | None:
        """SHA-256 of the file, which is read once; None where it cannot be."""
        if self._digest is None:
            with contextlib.suppress(OSError):
                self._digest = sha256_file(self.path)
        return self._digest


def scan(root: Path) -> dict[str, Artefact]:
    """The artefacts of the folders in `root`, by name, in alphabetical order; hidden folders are left out."""
    try:
        folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return {}
    paths = {folder.name: folder / GRAPH for folder in folders if (folder / GRAPH).is_file()}
    for file, suffix in _SUFFIXES.items():
        for folder in folders:
            if (folder / file).is_file():
                name = f"{folder.name}{suffix}"
                paths[name if name not in paths else f"{folder.name}/{file}"] = folder / file
    found: dict[str, Artefact] = {}
    for name in sorted(paths):
        # It may be gone since the folder was listed.
        with contextlib.suppress(OSError):
            found[name] = Artefact(name, paths[name])
    return found


def no_artefact(root: Path) -> ArtefactError:
    """The error for a folder without any artefact; says which command makes them."""
    return ArtefactError(
        f"no artefact to serve: expected {root}/<name>/{GRAPH}, {INT8_GRAPH} or {HALF_GRAPH}, found none; "
        "`make train compress export` writes them"
    )
