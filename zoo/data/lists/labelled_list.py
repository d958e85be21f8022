"""A list instead of a folder: a column of paths, a column of labels, perhaps a column of splits.

CSV, TSV, JSON lines or Parquet. Paths are relative to the list's own folder. Columns are known by usual names, or named
with --path-column, --label-column and --split-column.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.artefact.decode import SUFFIXES, UNREAD
from zoo.base.errors import DataError, unknown_name
from zoo.data.dataset import Dataset
from zoo.data.folders.assembly import assemble
from zoo.data.folders.class_names import canonical, check_class_names
from zoo.data.folders.image_files import ImageFile
from zoo.data.folders.layout import SPLIT_NAMES
from zoo.data.folders.reading import Reading, name_of
from zoo.data.folders.unused import Unused, printable
from zoo.data.folders.walk import name_problem
from zoo.data.lists.label_cells import check_one_label, label_of
from zoo.data.lists.tables import Table, open_table

__all__ = ["open_list"]

_PATHS = {"path", "paths", "file", "files", "filename", "filenames", "filepath", "image", "images", "imagepath"}
_PATHS |= {"imagefile", "imagefilename", "imagename", "img", "imgpath", "imgfile", "relativepath", "relpath"}
_LABELS = {"label", "labels", "class", "classes", "classname", "labelname", "category", "categories", "categoryname"}
_LABELS |= {"target", "targets", "species", "breed", "y", "groundtruth", "tag", "tags"}
_SPLITS = {"split", "splits", "subset", "partition", "set", "phase"}
_NO_SPLIT = "none"
_LOOK = 200
"""Rows that are looked at to say what a list without a column of labels is."""


def open_list(path: Path, *, seed: int = 0, reading: Reading | None = None) -> Dataset:
    """Open a list of labelled images; every file is decoded once.

    Args:
        path: of the list.
        seed: of the splits that are made here, where it has no column of them.
        reading: names of columns; its layout says nothing here.

    Raises:
        DataError: no list, no such columns, several labels an image, an unknown split, or what
            zoo.data.folders.folder.open_folder says.
        UsageError: a column that is named and not there (with close matches).
    """
    table = open_table(path)
    reading = reading or Reading()
    columns = _columns(table, path, reading)
    groups: dict[str, list[ImageFile]] = {}
    unused: list[Unused] = []
    seen: dict[str, str] = {}
    labels: dict[str, str] = {}
    for number, (cell, value, *rest) in enumerate(table.rows(columns), start=1):
        name = _name(cell, path, number)
        label = label_of(value, where=f"{path}, row {number}")
        split = _split(rest[0], path, number, columns[-1]) if rest else "all"
        if problem := _problem(name, label, split):
            unused.append(problem)
            continue
        label = labels.setdefault(label, label)
        if (other := seen.setdefault(name, label)) != label:
            raise DataError(
                f"{path}: {name} stands there with several labels ({other}, {label}), but each image is to have one: "
                "classifiers with several labels an image are not trained here; keep one row for each image"
            )
        groups.setdefault(split, []).append(ImageFile(_file(path.parent, name), name, label))
    _check_labels(labels, groups, path)
    groups = {split: [file._replace(label=canonical(file.label)) for file in files] for split, files in groups.items()}
    name, white = name_of(str(path)), reading.range
    return assemble(groups, root=path.parent, name=name, location=path, seed=seed, unused=unused, white=white)


def _columns(table: Table, path: Path, reading: Reading) -> list[str]:
    """The columns of paths, of labels and perhaps of splits."""
    found = [
        _column(table, "path", reading.path_column, _PATHS, path),
        _column(table, "label", reading.label_column, _LABELS, path),
    ]
    if reading.split_column == _NO_SPLIT and _NO_SPLIT not in table.columns:
        return found
    if reading.split_column or any(_plain(name) in _SPLITS for name in table.columns):
        found.append(_column(table, "split", reading.split_column, _SPLITS, path))
    return found


def _column(table: Table, kind: str, given: str, usual: set[str], path: Path) -> str:
    if given:
        if given not in table.columns:
            raise unknown_name(f"column (--{kind}-column) of {path.name}", given, table.columns)
        return given
    matches = [name for name in table.columns if _plain(name) in usual]
    if len(matches) == 1:
        return matches[0]
    remedy = f"name the one of {kind}s: --{kind}-column NAME"
    if matches:
        raise DataError(f"{path}: the columns {', '.join(map(repr, matches))} may each hold the {kind}s; {remedy}")
    if any(os.path.splitext(name)[1].lower() in SUFFIXES for name in table.columns):  # noqa: PTH122
        raise DataError(
            f"{path}: expected the names of the columns in the first row, found {', '.join(table.columns[:3])}; add a "
            "row path,label above it"
        )
    if kind == "label" and (names := _one_hot(table)):
        raise DataError(
            f"{path}: the columns {', '.join(names[:5])} hold 0 and 1, a column for each label, as for several labels "
            "an image, which are not trained here; expected one column with the label of each image"
        )
    raise DataError(
        f"{path}: no column has a usual name for {kind}s ({', '.join(sorted(usual)[:6])} ...), found "
        f"{', '.join(map(repr, table.columns[:10])) or 'no columns'}; {remedy}"
    )


def _plain(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())


def _one_hot(table: Table) -> list[str]:
    """Columns of nothing but zeros and ones, if there are several."""
    rows = list(itertools.islice(table.rows(table.columns), _LOOK))
    binary = {"0", "1", "0.0", "1.0", "true", "false"}
    columns = zip(table.columns, zip(*rows, strict=True), strict=True) if rows else ()
    names = [name for name, values in columns if all(str(value).strip().lower() in binary for value in values)]
    return names if len(names) > 1 else []


def _name(cell: Any, path: Path, row: int) -> str:
    if not isinstance(cell, str):
        raise DataError(
            f"{path}, row {row}: expected a path as text, found {type(cell).__name__}; name the column of paths: "
            "--path-column NAME"
        )
    name = cell.strip()
    # A list that was made on Windows.
    if "\\" in name and os.sep == "/" and not (path.parent / name).exists():
        name = name.replace("\\", "/")
    return os.path.normpath(name) if name else ""


def _file(folder: Path, name: str) -> str:
    return os.path.join(folder, name)  # noqa: PTH118 - a Path for each of a million files takes long


def _split(value: Any, path: Path, row: int, column: str) -> str:
    text = "" if value is None else str(value).strip()
    if text and text.lower() not in SPLIT_NAMES:
        raise DataError(
            f"{path}, row {row}: expected {', '.join(SPLIT_NAMES)} in the column {column!r}, found {text!r}; name "
            f"another one (--split-column NAME), or none (--split-column {_NO_SPLIT})"
        )
    return SPLIT_NAMES.get(text.lower(), "")


def _problem(name: str, label: str, split: str) -> Unused | None:
    """Why a row cannot be used."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
    reasons = {
        "rows without a path": not name,
        "rows without a label": not label,
        "rows without a split": not split,
        f"{suffix} files, which are not read here; {UNREAD.get(suffix, '')}": suffix in UNREAD,
        f"the name {name_problem(name)}; rename them": name_problem(name) is not None,
    }
    return next((Unused(name, reason, label) for reason, holds in reasons.items() if holds), None)


def _check_labels(labels: Iterable[str], groups: dict[str, list[ImageFile]], path: Path) -> None:
    names: Sequence[str] = sorted(labels)
    check_one_label(names, str(path))
    check_class_names(names, str(path))
    if len(names) < 2:
        raise DataError(
            f"{path}: expected at least two labels, found {[printable(name) for name in names] or 'no rows with one'}"
        )
    if "all" not in groups and "train" not in groups:
        raise DataError(f"{path}: expected rows of the split `train`, found only {', '.join(sorted(groups))}")
