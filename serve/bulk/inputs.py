"""What is to be scored: image files, or rows of Parquet files; listed once, read chunk by chunk."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from serve.bulk.scorer import Chunk, shown
from zoo.artefact.decode import SUFFIXES
from zoo.base.errors import DataError, UsageError, unknown_name

__all__ = ["Source", "Span", "open_source", "read_span"]

_COLUMNS = ("image", "bytes", "path")
_MAGIC = b"PAR1"

_STEP_ROWS, _STEP_BYTES = 128, 8 << 20
"""Rows of a chunk, and what images from Parquet files it may hold on average: enough to make the way to a worker and
back cost little, few enough for several chunks per worker to be in memory."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A row group of a Parquet file. Plain values: it travels to other processes and machines."""

    file: str
    group: int
    column: str
    """Of images, or of their paths."""
    key: str
    """Column that names the images; "": none."""
    row: int
    """First row in its file."""
    first: int
    """First row in the whole source."""
    count: int
    """Rows."""
    chunk: int
    """Number of its first chunk."""
    step: int
    """Rows of a chunk; the last one of a row group may have fewer."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything to be scored, in the order of the result."""

    text: str
    """As the user named it."""
    digest: str
    """SHA-256 of the files' paths, sizes and times of change, and of the columns that are read."""
    rows: int
    chunks: int
    step: int = 0
    """Rows of a chunk of image files; row groups have their own."""
    files: tuple[bytes, ...] = field(default=(), repr=False)
    """Image files; none if rows of Parquet files are scored."""
    spans: tuple[Span, ...] = field(default=(), repr=False)
    """Row groups of Parquet files; none if image files are scored."""

    def read(self, start: int) -> Iterator[Chunk]:
        """The chunks from number `start` on, in order.

        Raises:
            DataError: a Parquet file cannot be read.
        """
        for number in range(start, self.chunks if self.files else 0):
            yield _of_files(number, number * self.step, self.files[number * self.step : (number + 1) * self.step])
        for span in self.spans:
            if span.chunk + _chunks(span.count, span.step) > start:
                yield from read_span(span, start=start)

    def rows_before(self, chunk: int) -> int:
        """Rows in the chunks before number `chunk`."""
        if self.files:
            return min(self.rows, chunk * self.step)
        return sum(max(0, min(span.count, (chunk - span.chunk) * span.step)) for span in self.spans)


def open_source(
    text: str, *, batch: int, column: str | None = None, key: str | None = None, out: Path | None = None
) -> Source:
    """List what a folder, a quoted glob, an image or a Parquet file names.

    A folder's images are known by their suffix (zoo.artefact.decode.SUFFIXES), at any depth, hidden files and
    folders left out; a folder with Parquet files but no images means those. A glob means every file it matches, `**`
    any depth. Files are sorted by path.

    Args:
        text: what the user named.
        batch: rows of an inference, of which a chunk has a whole number.
        column: of a Parquet file; default: `image`, `bytes` or `path`, else the only column of images. It holds
            encoded images, structs of `bytes` and `path` (as Hugging Face writes them), or paths, which are relative
            to the working directory or to the Parquet file.
        key: column whose values stand in the result's `path`; default: the image's path, else FILE#ROW.
        out: where the result goes: no part of the source, though the folder or glob may hold it.

    Raises:
        DataError: nothing is there, there are no images, or a Parquet file cannot be read or lacks the column.
        UsageError: a column was named but there is no Parquet file, or it does not have it.
    """
    files = _list(text, out)
    parquet = [file for file in files if _is_parquet(file)]
    if parquet and len(parquet) < len(files):
        raise DataError(
            f"{text}: {len(parquet)} Parquet files and {len(files) - len(parquet)} others; name the ones or the others"
        )
    if not parquet:
        if column or key:
            raise UsageError(f"--column and --key belong to Parquet files; {text} has none; leave them out")
        step = _step(batch, 0)
        chunks = _chunks(len(files), step)
        return Source(text=text, digest=_digest(files), step=step, rows=len(files), chunks=chunks, files=tuple(files))
    spans = tuple(_spans([os.fsdecode(file) for file in files], column, key, batch))
    rows, chunks = sum(span.count for span in spans), sum(_chunks(span.count, span.step) for span in spans)
    if not rows:
        raise DataError(f"{text}: no rows to score; name a Parquet file that has some")
    read = [spans[0].column, spans[0].key]
    return Source(text=text, digest=_digest(files, *read), rows=rows, chunks=chunks, spans=spans)


def read_span(span: Span, *, start: int = 0) -> Iterator[Chunk]:
    """Stream a row group: its chunks from number `start` on; one chunk of images is in memory at a time.

    Raises:
        DataError: the file cannot be read.
    """
    skip = max(0, start - span.chunk)
    columns = [span.column, span.key] if span.key else [span.column]
    waiting: list[dict[str, Any]] = []
    number, row = span.chunk, 0
    try:
        # Without these two settings the whole row group would be in memory, which may be the whole file.
        with pq.ParquetFile(span.file, pre_buffer=False, buffer_size=1 << 20) as opened:
            for batch in opened.iter_batches(span.step, row_groups=[span.group], columns=columns):
                waiting += batch.to_pylist()
                while len(waiting) >= span.step or (waiting and row + len(waiting) == span.count):
                    taken, waiting = waiting[: span.step], waiting[span.step :]
                    if number >= span.chunk + skip:
                        yield _of_rows(span, number, row, taken)
                    number, row = number + 1, row + len(taken)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{span.file}: row group {span.group} cannot be read: {error}; write the file again") from error


def _list(text: str, out: Path | None) -> list[bytes]:
    path = Path(text)
    if path.is_file() and _is_same(path, out):
        raise DataError(f"{text}: is where the result would go, in place of the images; name another --out")
    if path.is_dir():
        found = [file for file in _below(text) if not _is_same(Path(os.fsdecode(file)), out)]
        pictures = sorted(file for file in found if Path(os.fsdecode(file)).suffix.lower() in SUFFIXES)
        if pictures:
            return pictures
        if parquet := sorted(file for file in found if file.endswith(b".parquet")):
            return parquet
        raise DataError(f"{text}: no images below it; expected files ending in {', '.join(sorted(SUFFIXES))}")
    if path.exists():
        return [os.fsencode(text)]
    if not glob.has_magic(text):
        raise DataError(f"{text}: nothing is there; name a folder, a glob in quotes, an image or a Parquet file")
    matches = [match for match in _once(glob.glob(text, recursive=True)) if not _is_same(Path(match), out)]  # noqa: PTH207
    if not matches:
        raise DataError(
            f"{text}: the glob matches no file; `**` matches folders at any depth, and quotes keep it whole"
        )
    return sorted(map(os.fsencode, matches))


def _once(matches: Iterable[str]) -> list[str]:
    """The files among them, each once however many links lead to its folder: a link upwards makes a loop for `**`."""
    found: dict[str, str] = {}
    for match in sorted(matches, key=lambda match: (len(match), match)):
        if Path(match).is_file():
            found.setdefault(str(Path(match).parent.resolve() / Path(match).name), match)
    return list(found.values())


def _is_same(file: Path, out: Path | None) -> bool:
    return out is not None and out.exists() and file.samefile(out)


def _below(folder: str) -> Iterator[bytes] | list[bytes]:
    found = []
    for place, folders, files in os.walk(os.fsencode(folder), onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(b".")]
        found += [os.path.join(place, name) for name in files if not name.startswith(b".")]  # noqa: PTH118
    return found


def _unreadable(error: OSError) -> NoReturn:
    folder = shown(os.fsencode(error.filename))
    raise DataError(
        f"{folder}: the folder cannot be read ({error.strerror}), so its images would be missing; allow it with "
        "`chmod u+rx`, or move it away"
    ) from error


def _is_parquet(file: bytes) -> bool:
    if file.endswith((b".parquet", b".pq")):
        return True
    if Path(os.fsdecode(file)).suffix.lower() in SUFFIXES:
        return False
    try:
        with open(file, "rb") as stream:  # noqa: PTH123
            return stream.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _digest(files: Iterable[bytes], *columns: str) -> str:
    found = hashlib.sha256()
    for file in files:
        try:
            state = os.stat(file)  # noqa: PTH116
            known = f"{state.st_size} {state.st_mtime_ns}"
        except OSError:
            known = "unreadable"
        found.update(b"%d %s %s\n" % (len(file), file, known.encode()))
    found.update(repr(columns).encode())
    return found.hexdigest()


def _chunks(rows: int, step: int) -> int:
    return -(-rows // step)


def _step(batch: int, row_bytes: int) -> int:
    rows = min(_STEP_ROWS, _STEP_BYTES // max(1, row_bytes))
    return max(1, rows // batch) * batch


def _spans(files: list[str], column: str | None, key: str | None, batch: int) -> Iterator[Span]:
    first = chunk = 0
    for file in files:
        try:
            with pq.ParquetFile(file) as opened:
                schema, metadata = opened.schema_arrow, opened.metadata
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: not a Parquet file that can be read: {error}") from error
        column = _choose(schema, column, file)
        if key and key not in schema.names:
            raise unknown_name(f"column of {file}", key, schema.names)
        row = 0
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            step = _step(batch, metadata.row_group(group).total_byte_size // max(1, count))
            yield Span(
                file=file,
                group=group,
                column=column,
                key=key or "",
                row=row,
                first=first,
                count=count,
                chunk=chunk,
                step=step,
            )
            row, first, chunk = row + count, first + count, chunk + _chunks(count, step)


def _choose(schema: pa.Schema, column: str | None, file: str) -> str:
    kinds: dict[str, pa.DataType] = {entry.name: entry.type for entry in schema}
    if column is not None:
        if column not in kinds:
            raise unknown_name(f"column of {file}", column, kinds)
        if not _holds_pictures(kinds[column]) and not _is_text(kinds[column]):
            raise DataError(
                f"{file}: column {column!r} holds {kinds[column]}; expected images (binary) or paths (text)"
            )
        return column
    for name in _COLUMNS:
        if name in kinds and (_holds_pictures(kinds[name]) or _is_text(kinds[name])):
            return name
    candidates: list[str] = [name for name, kind in kinds.items() if _holds_pictures(kind)]
    if len(candidates) == 1:
        return candidates[0]
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    raise DataError(
        f"{file}: {len(candidates)} columns of images, and none is called {', '.join(_COLUMNS)}; "
        f"name one with --column; columns: {listed}"
    )


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_pictures(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _of_files(number: int, first: int, files: tuple[bytes, ...]) -> Chunk:
    names = tuple(shown(file) for file in files)
    return Chunk(number=number, first=first, names=names, images=(None,) * len(files), files=files)


def _of_rows(span: Span, number: int, row: int, rows: list[dict[str, Any]]) -> Chunk:
    names, images, files = [], [], []
    for place, entry in enumerate(rows, start=span.row + row):
        value = entry[span.column]
        data = value.get("bytes") if isinstance(value, dict) else value if isinstance(value, bytes) else None
        path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
        name = entry[span.key] if span.key else path or None
        names.append(f"{Path(span.file).name}#{place}" if name is None else str(name))
        images.append(data)
        files.append(os.fsencode(path) if data is None and path else None)
    return Chunk(
        number=number,
        first=span.first + row,
        names=tuple(names),
        images=tuple(images),
        files=tuple(files),
        base=os.fsencode(Path(span.file).parent),
    )
