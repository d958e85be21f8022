"""Results on disk while they are made: parts that a killed run leaves whole, and the one file made from them.

Beside `results.parquet` stands `results.parquet.parts` with a manifest (what is scored, with what) and one Parquet file
per run of chunks, `part-FIRST-END.parquet`. A part is there completely or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.bulk.scorer import SCHEMA
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import write_atomically, write_bytes

__all__ = ["METADATA", "Parts", "Totals", "check_out", "count", "opened_parts", "read_metadata"]

METADATA = b"pocketzoo.score"
"""Key of the result's metadata: what was scored, with what, as JSON."""

_PART = re.compile(r"part-(\d+)-(\d+)\.parquet")
_GROUP = 1 << 14
"""Rows of a row group of the result."""
_EXAMPLES = 3
_REPEATED = ["label", "labels.list.element"]
"""Columns with few different values."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the result holds."""

    images: int
    errors: int
    """Rows without an answer."""
    examples: tuple[str, ...]
    """The first of them: path and reason."""


@dataclass(kw_only=True)
class Parts:
    """The parts of one result; `done` chunks, counted from the first one, are on disk."""

    out: Path
    folder: Path
    done: int = 0
    _files: list[Path] = field(default_factory=list)

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write the rows of the next chunks, one batch per chunk, as one part.

        Raises:
            ArtefactError: the disk is full.
        """
        end = self.done + len(batches)
        path = self.folder / f"part-{self.done:09d}-{end:09d}.parquet"
        write_atomically(path, lambda temporary: pq.write_table(pa.Table.from_batches(batches, SCHEMA), temporary))
        self._files.append(path)
        self.done = end

    def assemble(self, metadata: dict[str, Any]) -> None:
        """Make the result from the parts, a part in memory at a time, and remove them.

        Raises:
            ArtefactError: the disk is full, or a part was changed.
        """
        schema = SCHEMA.with_metadata({METADATA: json.dumps(metadata, sort_keys=True).encode()})

        def write(temporary: Path) -> None:
            with pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=_REPEATED) as writer:
                for table in _regrouped(self._tables()):
                    writer.write_table(table.cast(schema))

        write_atomically(self.out, write)
        self.remove()

    def remove(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def resume(self) -> None:
        """Find the parts that are there; what does not follow on the ones before it is removed."""
        found = sorted((int(match[1]), int(match[2]), path) for path, match in _named(self.folder))
        for first, end, path in found:
            if first == self.done and end > first and _is_whole(path):
                self._files.append(path)
                self.done = end
            else:
                path.unlink()

    def _tables(self) -> Iterator[pa.Table]:
        for path in self._files:
            try:
                # read_table would do, after importing pyarrow.dataset for a tenth of a second.
                with pq.ParquetFile(path) as opened:
                    yield opened.read()
            except (OSError, pa.ArrowException) as error:
                raise ArtefactError(f"{path}: cannot be read ({error}); delete it and run the command again") from error


def check_out(out: Path) -> None:
    """Refuse a result that could not be written, before anything is scored.

    Raises:
        UsageError: not a .parquet file in a folder that exists and can be written.
    """
    if out.suffix != ".parquet":
        raise UsageError(f"--out {out}: expected a name that ends in .parquet, got {out.suffix or 'no suffix'!r}")
    if out.is_dir():
        raise UsageError(f"--out {out}: expected a file, that is a folder; name a file in it")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}; make it, or name another file")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out}: the folder {out.parent} cannot be written; name another file")


def count(out: Path) -> Totals:
    """Count a result's rows and errors, a row group in memory at a time."""
    images = errors = 0
    examples: list[str] = []
    with pq.ParquetFile(out) as opened:
        for batch in opened.iter_batches(_GROUP, columns=["path", "error"]):
            bad = batch.filter(batch["error"].is_valid())
            images, errors = images + len(batch), errors + len(bad)
            examples += [
                f"{row['path']}: {row['error']}" for row in bad.slice(0, _EXAMPLES - len(examples)).to_pylist()
            ]
    return Totals(images=images, errors=errors, examples=tuple(examples))


def read_metadata(out: Path) -> dict[str, Any] | None:
    """What a result says about itself; None where there is no result of this program."""
    try:
        known = pq.read_metadata(out).metadata or {}
        found = json.loads(known[METADATA])
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextmanager
def opened_parts(out: Path, manifest: dict[str, Any], *, force: bool) -> Iterator[Parts]:
    """The parts of `out`: those of an interrupted run with the same manifest, else none yet.

    Args:
        out: the result.
        manifest: what decides about its rows: artefact, source, settings. JSON values.
        force: throw away what another run left.

    Raises:
        UsageError: another run left parts and `force` is not given, another run is at work, or the folder cannot be
            made.
    """
    folder = out.with_name(f"{out.name}.parts")
    try:
        folder.mkdir(exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror}); name another --out") from error
    try:
        _lock(lock, out)
        _match(folder, manifest, force)
        parts = Parts(out=out, folder=folder)
        parts.resume()
        try:
            yield parts
        finally:
            if not parts.done:
                parts.remove()
    finally:
        os.close(lock)


def _lock(descriptor: int, out: Path) -> None:
    with suppress(ImportError):  # Windows
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{out}: another process is writing it; wait for it, or name another --out") from error


def _match(folder: Path, manifest: dict[str, Any], force: bool) -> None:
    path = folder / "manifest.json"
    parts = [part for part, _ in _named(folder)]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == manifest:
        return
    if parts and not force:
        raise UsageError(f"{folder}: {_difference(found, manifest)}; --force begins again, or name another --out")
    for part in parts:
        part.unlink()
    write_bytes(path, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())


def _difference(found: object, manifest: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "holds parts without a manifest"
    changed = [
        f"{key} was {found.get(key)!r}, is {value!r}" for key, value in manifest.items() if found.get(key) != value
    ]
    return f"an interrupted run differs from this one: {'; '.join(changed)}"


def _named(folder: Path) -> Iterator[tuple[Path, re.Match[str]]]:
    for path in folder.iterdir():
        if match := _PART.fullmatch(path.name):
            yield path, match


def _is_whole(path: Path) -> bool:
    try:
        return bool(pq.read_schema(path).equals(SCHEMA))
    except (OSError, pa.ArrowException):
        return False


def _regrouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of _GROUP rows, so that a result does not show where a run was interrupted."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= _GROUP:
            whole = pa.concat_tables(waiting)
            cut = len(whole) - len(whole) % _GROUP
            for first in range(0, cut, _GROUP):
                yield whole.slice(first, _GROUP).combine_chunks()
            waiting = [whole.slice(cut)]
    if any(map(len, waiting)):
        yield pa.concat_tables(waiting).combine_chunks()
