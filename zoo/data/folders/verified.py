"""Which image files were decoded without an error: remembered by name, size and time of change."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from zoo.artefact.decode import inspect
from zoo.artefact.samples import Depth
from zoo.base.errors import ImageError
from zoo.base.files import output_root
from zoo.base.machine import cores
from zoo.base.progress import note

__all__ = ["Verdict", "verify"]

_CHUNK = 1024
"""Files that are decoded before the memory is written; an interrupted verification loses no more."""
_PATIENCE = 60.0
"""Seconds to wait for another process that writes the same memory."""


class Verdict(NamedTuple):
    """Of one file: the SHA-256 of its bytes, or what is wrong with it."""

    digest: str
    problem: str = ""
    missing: bool = False
    depth: Depth | None = None
    """See zoo.artefact.decode.inspect."""


def verify(files: Iterable[tuple[str, str]], root: Path) -> Iterator[Verdict]:
    """Decode files that were not decoded before; in their order, and no more than a chunk of them in memory.

    Args:
        files: name and path of each.
        root: the data set's folder: its path names what is remembered, in `.index` of the folder of artefacts.
    """
    name = hashlib.sha256(str(root.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    with _Memory(output_root() / ".index" / f"{name}.sqlite") as memory:
        pool = ThreadPoolExecutor(max_workers=cores(), thread_name_prefix="verify")
        try:
            rest = iter(files)
            while chunk := list(itertools.islice(rest, _CHUNK)):
                yield from _verify_chunk(chunk, memory, pool)
        finally:
            pool.shutdown(cancel_futures=True)


def _verify_chunk(chunk: Sequence[tuple[str, str]], memory: _Memory, pool: ThreadPoolExecutor) -> list[Verdict]:
    states = [_state(path) for _, path in chunk]
    known = [memory.recall(name, state) if state else None for (name, _), state in zip(chunk, states, strict=True)]
    new = [place for place, verdict in enumerate(known) if verdict is None]
    found = dict(zip(new, pool.map(_verify_one, [chunk[place][1] for place in new]), strict=True))
    # A problem may be mended without the file changing (its permissions), so only what is good is remembered.
    memory.keep(
        (chunk[place][0], state, verdict)
        for place, verdict in found.items()
        if not verdict.problem and (state := states[place])
    )
    return [verdict or found[place] for place, verdict in enumerate(known)]


def _state(path: str) -> tuple[int, int] | None:
    """Size in bytes and time of change in nanoseconds; None where there is nothing."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of a million files takes long
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _verify_one(path: str) -> Verdict:
    file = Path(path)
    try:
        if file.exists() and not file.is_file():
            return Verdict("", "no regular file")
        data = file.read_bytes()
        depth = inspect(data)
    except FileNotFoundError:
        return Verdict("", "there is no such file", missing=True)
    except OSError as error:
        return Verdict("", str(error.strerror or error))
    except ImageError as error:
        return Verdict("", str(error))
    return Verdict(hashlib.sha256(data).hexdigest(), depth=depth)


class _Memory:
    """A table of good files; without one that can be used, nothing is remembered, and that is said."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table: sqlite3.Connection | None = None

    def __enter__(self) -> _Memory:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._table = self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                # Not a table, or half of one: it only saves time.
                self._path.unlink()
                self._table = self._open()
        except (OSError, sqlite3.Error) as error:
            self._forget(error)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._table is not None:
            self._table.close()

    def recall(self, name: str, state: tuple[int, int]) -> Verdict | None:
        """What was found of a file that has not changed since it was found good."""
        if self._table is None:
            return None
        try:
            row = self._table.execute(
                "SELECT digest, samples, largest FROM good WHERE name = ? AND size = ? AND changed = ?", (name, *state)
            )
            found = row.fetchone()
        except sqlite3.Error as error:
            self._forget(error)
            return None
        if found is None:
            return None
        digest, samples, largest = found
        return Verdict(bytes(digest).hex(), depth=Depth(samples, largest) if samples else None)

    def keep(self, rows: Iterable[tuple[str, tuple[int, int], Verdict]]) -> None:
        """Remember good files by name and state."""
        values = [
            (name, *state, bytes.fromhex(found.digest), *((depth.kind, depth.largest) if depth else (None, None)))
            for name, state, found in rows
            for depth in [found.depth]
        ]
        if self._table is None or not values:
            return
        try:
            with self._table:
                self._table.executemany("INSERT OR REPLACE INTO good VALUES (?, ?, ?, ?, ?, ?)", values)
        except sqlite3.Error as error:
            self._forget(error)

    def _open(self) -> sqlite3.Connection:
        table = sqlite3.connect(self._path, timeout=_PATIENCE)
        try:
            table.execute("PRAGMA synchronous = NORMAL")
            columns = [row[1] for row in table.execute("PRAGMA table_info(good)")]
            if columns and "largest" not in columns:
                # Of a version that did not look at the samples.
                table.execute("DROP TABLE good")
            table.execute(
                "CREATE TABLE IF NOT EXISTS good (name TEXT PRIMARY KEY, size INTEGER, changed INTEGER, digest BLOB, "
                "samples TEXT, largest REAL) WITHOUT ROWID"
            )
            table.execute("SELECT name, size, changed, digest, samples, largest FROM good LIMIT 1")
        except sqlite3.Error:
            table.close()
            raise
        return table

    def _forget(self, error: Exception) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._table is not None:
                self._table.close()
        self._table = None
        note(f"{self._path}: cannot be used ({error}), so the images will be decoded again next time; remove the file")
