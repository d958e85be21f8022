"""What is known of files that have not changed: their digest, and whether they passed their check on this machine.

Kept in the user's folder for caches, as speeds of engines are, for the workers of one server and the next start; where
this cannot be written, it is found out again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import threading
from pathlib import Path
from typing import Any

from zoo.base.files import cache_folder, sha256_file, write_bytes

__all__ = ["Known", "Stamp", "stamp"]

Stamp = tuple[int, int, int]
"""Inode, size in bytes and time of the last change in nanoseconds: another one means that a file was changed."""

_MOST = 4096
_ENGINES = ("onnxruntime", "onnxruntime-gpu", "openvino")


class Known:
    """Digests and passed checks by device, inode, size and times of a file. Threads may call its methods."""

    def __init__(self, path: Path | None = None) -> None:
        """`path`: the file to keep it in; default: one in zoo.base.files.cache_folder."""
        folder = cache_folder()
        self._path = path or (folder / "checked.json" if folder else None)
        self._lock = threading.Lock()
        self._entries: dict[str, dict[str, str]] = {}

    def digest(self, path: Path) -> str:
        """SHA-256 of a file, which is read if it is not known.

        Raises:
            OSError: it cannot be read.
        """
        key = _key(path)
        if found := self._find(key, "digest"):
            return found
        digest = sha256_file(path)
        if _key(path) == key:
            self._note(key, digest=digest)
        return digest

    def passed(self, path: Path) -> str | None:
        """The digest of a file that has passed its check, with the engines and the version there are now."""
        with contextlib.suppress(OSError):
            key = _key(path)
            if self._find(key, "passed") == _environment():
                return self._find(key, "digest")
        return None

    def note_passed(self, path: Path, digest: str) -> None:
        """Remember that a file of this digest has passed its check."""
        with contextlib.suppress(OSError):
            self._note(_key(path), digest=digest, passed=_environment())

    def _find(self, key: str, what: str) -> str | None:
        with self._lock:
            if what not in self._entries.get(key, {}):
                self._entries = {**self._read(), **self._entries}
            return self._entries.get(key, {}).get(what)

    def _note(self, key: str, **values: str) -> None:
        with self._lock:
            entries = {**self._read(), **self._entries}
            entries[key] = entries.pop(key, {}) | values
            self._entries = dict(list(entries.items())[-_MOST:])
            if self._path is None:
                return
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if self._is_ours():
                    write_bytes(self._path, json.dumps(self._entries).encode())

    def _read(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self._path.read_bytes()) if self._path and self._is_ours() else {}
            if isinstance(found, dict) and all(isinstance(entry, dict) for entry in found.values()):
                return found
        return {}

    def _is_ours(self) -> bool:
        """Whether nobody else can have written there."""
        assert self._path is not None
        found = self._path.parent.stat()
        return os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def stamp(path: Path) -> Stamp:
    """What tells one state of a file from the next, without reading it.

    Raises:
        OSError: there is no such file.
    """
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _key(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _environment() -> str:
    versions = [os.environ.get("POCKETZOO_ENGINE", "")]
    for name in _ENGINES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return "; ".join(versions)
