"""Files on disk: atomic writes, digests, and where artefacts live."""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.base.errors import ArtefactError

__all__ = [
    "CHECKPOINT",
    "GRAPH",
    "HALF_GRAPH",
    "INT8_GRAPH",
    "PROJECT",
    "TEXTS",
    "UNMERGED",
    "cache_folder",
    "checkpoint_path",
    "code_commit",
    "graph_paths",
    "output_root",
    "sha256_file",
    "write_atomically",
    "write_bytes",
    "write_table",
]

CHECKPOINT = "model.safetensors"
UNMERGED = "lora.safetensors"
GRAPH = "model.onnx"
INT8_GRAPH = "model.int8.onnx"
HALF_GRAPH = "model.fp16.onnx"
TEXTS = "texts.safetensors"
"""The part of a CLIP that embeds texts, beside the checkpoint made of the part that embeds images."""

PROJECT = Path(__file__).resolve().parents[2]
"""The folder that holds the packages: a checkout of this project, or where packages are installed."""

_BARRED = {errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EISDIR}
"""Errors that more room on the disk would not mend."""


def cache_folder() -> Path | None:
    """Where is kept what can be found out again: None where this user has no home.

    POCKETZOO_CACHE, else `pocketzoo` in XDG_CACHE_HOME, LOCALAPPDATA (Windows), ~/Library/Caches (macOS) or ~/.cache.
    """
    try:
        if named := os.environ.get("POCKETZOO_CACHE"):
            return Path(named)
        if base := os.environ.get("XDG_CACHE_HOME"):
            return Path(base) / "pocketzoo"
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "pocketzoo"
        return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "pocketzoo"
    except RuntimeError:
        return None


def output_root() -> Path:
    """The folder of artefacts: `POCKETZOO_OUTPUT`, else `output/` below the working directory."""
    return Path(os.environ.get("POCKETZOO_OUTPUT") or Path.cwd() / "output")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file, flush it to disk and rename it to `path`.

    A killed run leaves the old file or the new one, never half of one; a failing `write` leaves the old one.

    Raises:
        ArtefactError: the folder cannot be written, or the disk is full.
    """
    try:
        _write_atomically(path, write)
    except OSError as error:
        # A library that meets a full disk may give no number.
        barred = error.errno in _BARRED
        remedy = "name a folder that can be" if barred else "free some space or name another folder (POCKETZOO_OUTPUT)"
        reason = f"{path}: cannot be written ({error}); {remedy}, then run the same command again"
        raise ArtefactError(reason) from error


def _write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files private to the user; artefacts follow the umask like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        # Windows flushes only what is open for writing.
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    write_atomically(path, lambda temporary: _write(temporary, content))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, at least one, as CSV to `path` atomically; the keys of the first one are the header."""
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, stream.getvalue().encode())


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def sha256_file(path: Path) -> str:
    """The hexadecimal SHA-256 digest of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def code_commit() -> str | None:
    """The commit of this source tree, with `-dirty` if it was changed since; None where it is installed otherwise.

    A repository around the installed packages is somebody else's.
    """
    if not (PROJECT / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty"],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def checkpoint_path(artefact: Path) -> Path:
    """The checkpoint that a folder or file name means.

    Raises:
        ArtefactError: there is none; says which command writes one.
    """
    path = artefact / CHECKPOINT if artefact.is_dir() else artefact
    if not path.is_file():
        raise ArtefactError(
            f"no checkpoint at {path}; `pocketzoo train` writes one, `pocketzoo list` shows what is there"
        )
    return path


def graph_paths(artefact: Path) -> list[Path]:
    """The ONNX files that a folder or file name means: the file itself, or those of the folder.

    Raises:
        ArtefactError: there is none; says which command writes one.
    """
    if artefact.is_dir():
        found = [path for name in (GRAPH, INT8_GRAPH) if (path := artefact / name).is_file()]
    else:
        found = [artefact] if artefact.is_file() else []
    if not found:
        raise ArtefactError(f"no ONNX file at {artefact}; `pocketzoo export {artefact}` writes one")
    return found
