"""From a partition to chunks of images, read as a stream: a chunk of images is in memory at a time."""

from __future__ import annotations

import itertools
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from serve.bulk.inputs import Partition, RowRange, pass_over, suffix_of
from serve.bulk.listing import open_file, shown
from serve.bulk.scorer import Chunk, Item
from zoo.artefact.decode import SUFFIXES
from zoo.base.errors import DataError

__all__ = ["read"]

_ROWS, _BYTES = 128, 8 << 20
"""Images of a chunk, and what they may hold together: enough to make the way to a worker and back cost little, little
enough for several chunks per worker to be in memory."""

_rows_left: dict[tuple[str, str, str | None, int], Iterator[dict[str, Any]]] = {}
"""At most one: rows of a file from a number on, opened for the partition before. Another partition of the same row
group would otherwise decode all that stands before it again."""


def read(partition: Partition, *, batch: int, most: int) -> Iterator[Chunk]:
    """Read a partition, in chunks of whole batches; at least one chunk, though it may be empty.

    Args:
        partition: what to read.
        batch: images of one inference.
        most: bytes of an image that is read out of a tar shard; of a larger one, a byte more is read.

    Raises:
        DataError: a Parquet file or a tar shard cannot be opened.
    """
    base = ""
    if partition.rows:
        items = _of_rows(partition.rows)
        base = os.path.dirname(partition.rows.file)  # noqa: PTH120 - it may be a URL
    elif partition.tar:
        items = _of_tar(partition, most)
    else:
        items = (Item(name=shown(file), file=file) for file in partition.files)
    first = partition.first
    for group in _grouped(items, max(1, _ROWS // batch) * batch, batch):
        yield Chunk(first=first, items=group, base=base)
        first += len(group)
    if first == partition.first:
        yield Chunk(first=first, items=())


def _grouped(items: Iterator[Item], rows: int, batch: int) -> Iterator[tuple[Item, ...]]:
    group: list[Item] = []
    held = 0
    for item in items:
        group.append(item)
        held += len(item.image or b"")
        if len(group) == rows or (held >= _BYTES and len(group) % batch == 0):
            yield tuple(group)
            group, held = [], 0
    if group:
        yield tuple(group)


def _of_rows(rows: RowRange) -> Iterator[Item]:
    known = (rows.file, rows.column, rows.key)
    found = _rows_left.pop((*known, rows.begin), None) or _rows_from(rows)
    _rows_left.clear()
    for place, row in enumerate(itertools.islice(found, rows.count), start=rows.begin):
        value = row[rows.column]
        data = value.get("bytes") if isinstance(value, dict) else value if isinstance(value, bytes) else None
        path = value.get("path") if isinstance(value, dict) else value if isinstance(value, str) else None
        name = row[rows.key] if rows.key else path or None
        yield Item(
            name=f"{PurePosixPath(rows.file).name}#{place}" if name is None else str(name),
            image=data,
            file=path if data is None and path else None,
        )
    if rows.begin + rows.count < rows.rows:
        _rows_left[(*known, rows.begin + rows.count)] = found


def _rows_from(rows: RowRange) -> Iterator[dict[str, Any]]:
    columns = [rows.column, rows.key] if rows.key else [rows.column]
    skip, group = rows.begin, 0
    try:
        # Without these two settings the whole row group would be in memory, which may be the whole file.
        with open_file(rows.file) as stream, pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20) as opened:
            while skip and skip >= opened.metadata.row_group(group).num_rows:
                skip -= opened.metadata.row_group(group).num_rows
                group += 1
            groups = list(range(group, opened.num_row_groups))
            size = sum(opened.metadata.row_group(place).total_byte_size for place in groups)
            step = max(1, min(_ROWS, _BYTES * (rows.rows - rows.begin) // max(1, size)))
            for batch in opened.iter_batches(step, row_groups=groups, columns=columns):
                yield from batch.slice(skip).to_pylist()
                skip = max(0, skip - len(batch))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{rows.file}: cannot be read from row {rows.begin} on: {error}; write it again") from error


def _of_tar(partition: Partition, most: int) -> Iterator[Item]:
    shard, passed = partition.tar, partition.passed
    try:
        with open_file(shard) as stream, tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as tar:
            kept: list[tarfile.TarInfo] = vars(tar)["members"]  # all members, or they would stay in memory
            while (member := tar.next()) is not None:
                kept.clear()
                if member.isdir():
                    continue
                if not member.isreg():
                    passed["no regular files"] += 1
                elif os.path.basename(member.name).startswith("."):  # noqa: PTH119 - as for base
                    passed["hidden"] += 1
                elif suffix_of(member.name) not in SUFFIXES:
                    pass_over(member.name, passed)
                else:
                    yield Item(name=f"{shown(shard)}#{shown(member.name)}", image=_content(tar, member, most))
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        # The images before are good, and so is the next shard.
        yield Item(name=shown(shard), error=f"the shard is damaged from here on: {error or 'it is cut off'}")
    except OSError as error:
        raise DataError(f"{shard}: cannot be read: {error}; the same command continues where it stopped") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None
    data = stream.read(most + 1)
    if len(data) < min(member.size, most + 1):
        raise tarfile.ReadError(f"{member.name} is cut off")
    return data


class _Member(tarfile.TarInfo):
    """Takes what is no header for damage; tarfile would take it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.SubsequentHeaderError(str(error)) from error  # type: ignore[attr-defined]
