"""Tables of other programs, row by row: CSV, TSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.base.errors import DataError, UsageError

__all__ = ["TABLE_SUFFIXES", "Table", "open_table"]

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")

Row = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Named columns, and their rows as often as they are asked for."""

    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Row]]
    """Values of the named columns in each row: text from CSV and TSV, else what JSON or Parquet have."""


def open_table(path: Path) -> Table:
    """Open a table by its suffix.

    Raises:
        DataError: the file is no such table, or its columns have no names, or two have the same.
        UsageError: a Parquet file without the package pyarrow.
    """
    suffix = path.suffix.lower()
    if suffix in (".parquet", ".pq"):
        table = _parquet(path)
    elif suffix in (".jsonl", ".ndjson"):
        table = _json_lines(path)
    elif suffix in (".csv", ".tsv"):
        table = _delimited(path, "\t" if suffix == ".tsv" else None)
    else:
        raise DataError(
            f"{path}: expected a folder of images, or a list of paths and labels (a file ending in "
            f"{', '.join(TABLE_SUFFIXES)}); name one of these"
        )
    if len(set(table.columns)) != len(table.columns) or not all(name.strip() for name in table.columns):
        raise DataError(
            f"{path}: expected distinct names of columns in the first row, found {list(table.columns)[:10]}"
        )
    return table


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield from stream
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error


def _delimited(path: Path, delimiter: str | None) -> Table:
    # Spreadsheets write semicolons where the comma is the decimal sign.
    first = next(_lines(path), "")
    separator = delimiter or max(",;\t", key=first.count)

    def all_rows() -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(_lines(path), delimiter=separator, skipinitialspace=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num}: {error}; expected cells separated by {separator!r}"
            ) from error

    columns = tuple(next(all_rows(), (0, []))[1])

    def rows(names: Sequence[str]) -> Iterator[Row]:
        places = [columns.index(name) for name in names]
        table = all_rows()
        next(table, None)
        for line, cells in table:
            if len(cells) != len(columns):
                raise DataError(
                    f"{path}, line {line}: expected {len(columns)} cells separated by {separator!r} as in the first "
                    f"line, found {len(cells)}; put cells that hold {separator!r} in quotation marks"
                )
            yield tuple(cells[place] for place in places)

    return Table(columns=columns, rows=rows)


def _json_lines(path: Path) -> Table:
    def documents() -> Iterator[dict[str, Any]]:
        for number, line in enumerate(_lines(path), start=1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: expected one JSON object a line: {error}") from None
            if not isinstance(document, dict):
                raise DataError(f"{path}, line {number}: expected a JSON object, found {line.strip()[:40]}")
            yield document

    columns = tuple(next(documents(), {}))
    return Table(columns=columns, rows=lambda names: (tuple(map(row.get, names)) for row in documents()))


def _parquet(path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(f"{path}: Parquet needs the package pyarrow: pip install 'pocketzoo[score]'") from error
    try:
        columns = tuple(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error

    def rows(names: Sequence[str]) -> Iterator[Row]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=list(names), batch_size=8192):
                    yield from zip(*(batch.column(name).to_pylist() for name in names), strict=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: cannot be read as Parquet: {error}") from error

    return Table(columns=columns, rows=rows)
