"""Versions of artefacts that were served, kept to roll back to.

`<state folder>/versions/<name>/<version>.onnx` is a copy: a hard link would change with the artefact where that is
overwritten in place (`cp` does), just when the old version is needed. A file's time of change says when it was put in
the models' folder, so that versions have an order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
import urllib.parse
from collections.abc import Collection
from pathlib import Path

from serve.models.model import VERSION_DIGITS, Model, load_model
from zoo.base.errors import ArtefactError
from zoo.base.files import sha256_file, write_atomically

__all__ = ["VersionStore"]

_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_DIGITS}}}")

_log = logging.getLogger("bentoml.pocketzoo")


class VersionStore:
    """The kept versions of every model, shared by the workers.

    A folder that cannot be written is warned of once; `problem` then says why nothing is kept, and serving goes on.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Keep up to `keep` versions of a model beside the one it serves, in `folder`, which need not exist."""
        self._folder = folder / "versions"
        self._keep = keep
        self.problem: str | None = None

    def path(self, name: str, version: str) -> Path | None:
        """The file of a version, if it is kept."""
        if not _VERSION.fullmatch(version):
            return None
        path = self._of(name) / f"{version}.onnx"
        return path if path.is_file() else None

    def versions(self, name: str) -> list[str]:
        """The kept versions, the latest first."""
        dated: list[tuple[int, str]] = []
        with contextlib.suppress(OSError):
            for path in self._of(name).glob("*.onnx"):
                if _VERSION.fullmatch(path.stem):
                    dated.append((path.stat().st_mtime_ns, path.stem))
        return [version for _, version in sorted(dated, reverse=True)]

    def previous(self, name: str, version: str) -> str | None:
        """The version that was served before `version`; None if it is not kept."""
        kept = self.versions(name)
        older = kept[kept.index(version) + 1 :] if version in kept else kept
        return older[0] if older else None

    def add(self, model: Model, *, needed: Collection[str] = ()) -> None:
        """Keep a version that was loaded from the models' folder, as the latest.

        Args:
            model: it.
            needed: versions that are not dropped, however old.
        """
        if not self._keep:
            return
        kept = self.versions(model.name)
        if kept[:1] == [model.version]:
            return
        path = self._of(model.name) / f"{model.version}.onnx"
        try:
            if model.version not in kept:
                write_atomically(path, lambda temporary: _copy(model, temporary))
            self._make_latest(path)
        except (OSError, ArtefactError) as error:
            if self.problem is None:
                _log.warning("%s: versions are not kept to roll back to: %s", self._folder, error.__cause__ or error)
            self.problem = str(error.__cause__ or error)
            return
        self.problem = None
        for version in [version for version in kept if version != model.version][self._keep :]:
            if version not in needed:
                self._drop(model.name, version)

    def load(self, name: str, version: str, *, threads: int | None = None) -> Model:
        """Load a kept version.

        Raises:
            ArtefactError: it is not kept (says which are, or why none is), or is damaged.
            PocketzooError: it fails a check.
        """
        path = self.path(name, version)
        if path is None:
            raise ArtefactError(f"version {version:.40} of {name!r} is not kept; {self.explain(name)}")
        model = load_model(name, path, threads=threads)
        if model.version != version:
            raise ArtefactError(f"{path}: damaged: expected the version {version}, found {model.version}; delete it")
        return model

    def explain(self, name: str) -> str:
        """Which versions are kept, or why none is."""
        if kept := self.versions(name):
            return f"kept: {', '.join(kept)}"
        if not self._keep:
            return "none are, POCKETZOO_KEEP_VERSIONS is 0"
        return f"none are: {self.problem}" if self.problem else "no version of it is"

    def _of(self, name: str) -> Path:
        return self._folder / urllib.parse.quote(name, safe="")

    def _make_latest(self, path: Path) -> None:
        others = [entry.stat().st_mtime_ns for entry in path.parent.glob("*.onnx") if entry != path]
        now = max([time.time_ns(), *(other + 1 for other in others)])
        os.utime(path, ns=(now, now))

    def _drop(self, name: str, version: str) -> None:
        with contextlib.suppress(OSError):
            (self._of(name) / f"{version}.onnx").unlink(missing_ok=True)


def _copy(model: Model, target: Path) -> None:
    shutil.copyfile(model.path, target)
    if sha256_file(target) != model.digest:
        raise ArtefactError(f"{model.path}: was changed while it was copied")
