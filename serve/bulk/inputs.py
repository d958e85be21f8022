"""What is to be scored, cut into partitions: image files, rows of Parquet files, or tar shards (WebDataset).

Nothing is listed before it is needed: a partition is made when the ones before it are taken. Which inputs it has, and
what they are called, depends on the source and the settings alone; its digest says whether they are still the same.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from serve.bulk.listing import Found, listed, open_file, shown
from zoo.artefact.decode import SUFFIXES, UNREAD
from zoo.base.errors import DataError, UsageError, unknown_name

__all__ = ["Partition", "RowRange", "Source", "pass_over", "suffix_of"]

_COLUMNS = ("image", "bytes", "path")
_MAGIC = b"PAR1"
_PARQUET = (".parquet", ".pq")
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_HELD = 10_000
"""Parquet files and tar shards before the first image of a folder; with more it is a folder of those."""

_REASONS = 40
"""Suffixes of files that are counted each on its own."""


@dataclass(frozen=True, kw_only=True)
class RowRange:
    """Neighbouring rows of a Parquet file."""

    file: str
    column: str
    """Of images, or of their paths."""
    key: str | None
    """Column that names the images."""
    begin: int
    count: int
    rows: int
    """Of the whole file."""


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Neighbouring inputs whose rows become one file of the result. Plain values: it travels to other machines.

    It has either files, or rows of a Parquet file, or the images of a tar shard.
    """

    number: int
    """Partitions count from zero."""
    first: int
    """Row of its first input, through the whole source; 0 for tar shards, whose images nobody has counted."""
    digest: str
    """SHA-256 of its inputs: names, sizes and times of change."""
    files: tuple[str, ...] = field(default=(), repr=False)
    rows: RowRange | None = None
    tar: str = ""
    passed: Counter[str] = field(default_factory=Counter, compare=False)
    """Members of a tar shard that are no images, by reason; counted while it is read."""

    def __len__(self) -> int:
        """Inputs; of a tar shard 1."""
        return len(self.files) or (self.rows.count if self.rows else 1)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder, a quoted glob, an image, a Parquet file or a tar shard, here or at a URL that fsspec reads.

    A folder's images are known by their suffix (zoo.artefact.decode.SUFFIXES), at any depth; a folder without images
    means its Parquet files, or its tar shards. A glob means every file it matches, `**` any depth. What is left out
    (hidden files, links to folders, other suffixes) is counted. Files are sorted as serve.bulk.listing says.
    """

    text: str
    """As the user named it."""
    size: int
    """Inputs of a partition; of tar shards each is one."""
    column: str | None = None
    """Of a Parquet file; default: `image`, `bytes` or `path`, else the only column of images. It holds encoded images,
    structs of `bytes` and `path` (as Hugging Face writes them), or paths and URLs; paths are relative to the working
    directory or to the Parquet file."""
    key: str | None = None
    """Column whose values stand in the result's `path`; default: the image's path, else FILE#ROW."""
    out: str = ""
    """Where the result goes: no part of the source, though the folder may hold it."""

    def partitions(self) -> Iterator[Partition]:
        """The partitions, in order, listed while they are taken.

        Raises:
            DataError: nothing is there, there are no images, or a Parquet file cannot be read or lacks the column.
            UsageError: a column was named but there is no Parquet file, or it does not have it.
        """
        kind, found = self._files(Counter())
        if kind == "tar":
            for number, shard in enumerate(found):
                yield Partition(number=number, first=0, digest=_digest([shard]), tar=shard.path)
        elif kind == "parquet":
            yield from self._row_ranges(found)
        else:
            for number in itertools.count():
                if not (taken := list(itertools.islice(found, self.size))):
                    return
                names = tuple(one.path for one in taken)
                yield Partition(number=number, first=number * self.size, digest=_digest(taken), files=names)

    def count(self, passed: Counter[str]) -> Iterator[tuple[int, str]]:
        """List the source without looking at its files: how many inputs were listed so far, and their unit.

        Args:
            passed: reasons why files are left out, counted on the way.
        """
        kind, found = self._files(passed)
        if kind == "parquet":
            found = (each for one in found for each in itertools.repeat(one, _opened(one.path)[1].num_rows))
        for number, _ in enumerate(found, start=1):
            yield number, "shards" if kind == "tar" else "images"

    def _files(self, passed: Counter[str]) -> tuple[str, Iterator[Found]]:
        """The files of one kind: images where there are any, else Parquet files or tar shards."""
        named, found = listed(self.text, passed, out=self.out)
        held: list[Found] = []
        kind = ""
        for one in found:
            if found_kind := _kind(one.path, named):
                held.append(one)
                kind = "images" if found_kind == "images" else kind or found_kind
                if kind == "images" or len(held) == _HELD:
                    break
            else:
                pass_over(one.path, passed)
        if not kind:
            raise DataError(
                f"{self.text}: the glob matches no file; `**` matches folders at any depth, and quotes keep it whole"
                if named
                else f"{self.text}: no images below it; expected files ending in {', '.join(sorted(SUFFIXES))}"
            )
        if kind != "parquet" and (self.column or self.key):
            raise UsageError(f"--column and --key belong to Parquet files; {self.text} has none; leave them out")

        def chosen() -> Iterator[Found]:
            for one in itertools.chain(held, found):
                if _kind(one.path, named) == kind:
                    yield one
                else:
                    pass_over(one.path, passed)

        return kind, chosen()

    def _row_ranges(self, found: Iterable[Found]) -> Iterator[Partition]:
        number = first = 0
        column = self.column
        for one in found:
            schema, metadata = _opened(one.path)
            column = _choose(schema, column, one.path)
            if self.key and self.key not in schema.names:
                raise unknown_name(f"column of {one.path}", self.key, schema.names)
            rows = metadata.num_rows
            for begin in range(0, rows, self.size):
                taken = RowRange(
                    file=one.path,
                    column=column,
                    key=self.key,
                    begin=begin,
                    count=min(self.size, rows - begin),
                    rows=rows,
                )
                digest = _digest([one], column, self.key, begin, taken.count)
                yield Partition(number=number, first=first, digest=digest, rows=taken)
                number, first = number + 1, first + taken.count
        if not number:
            raise DataError(f"{self.text}: no rows to score; name a Parquet file that has some")


def _kind(path: str, named: bool) -> str:
    """`images`, `parquet` or `tar`; empty where nobody named the file and its suffix is of none of them."""
    # Millions of names come by here, most of them images'.
    if suffix_of(path) in SUFFIXES:
        return "images"
    name = path.lower()
    if name.endswith(_PARQUET):
        return "parquet"
    if name.endswith(_TAR):
        return "tar"
    if named and _begins_as_parquet(path):
        return "parquet"
    return "images" if named else ""


def _begins_as_parquet(path: str) -> bool:
    try:
        with open_file(path) as stream:
            return bool(stream.read(len(_MAGIC)) == _MAGIC)
    except OSError:
        return False


def suffix_of(path: str) -> str:
    """In small letters; pathlib would take twenty times as long, and keep the name."""
    name = path[path.rfind("/") + 1 :]
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def pass_over(path: str, passed: Counter[str]) -> None:
    """Count a file by its suffix, with what can be done about it."""
    suffix = shown(suffix_of(path))
    reason = f"ending in {suffix}" if suffix else "without a suffix"
    if remedy := UNREAD.get(suffix):
        reason += f" ({remedy})"
    passed[reason if reason in passed or len(passed) < _REASONS else "of other kinds"] += 1


def _digest(found: Iterable[Found], *more: object) -> str:
    digest = hashlib.sha256()
    for one in found:
        digest.update(f"{shown(one.path)}\0{one.state()}\0".encode())
    digest.update(repr(more).encode())
    return digest.hexdigest()


def _opened(file: str) -> tuple[pa.Schema, Any]:
    try:
        with open_file(file) as stream, pq.ParquetFile(stream) as opened:
            return opened.schema_arrow, opened.metadata
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: not a Parquet file that can be read: {error}") from error


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
    columns = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    raise DataError(
        f"{file}: {len(candidates)} columns of images, and none is called {', '.join(_COLUMNS)}; "
        f"name one with --column; columns: {columns}"
    )


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_pictures(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
