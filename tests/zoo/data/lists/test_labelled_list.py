"""Lists of paths and labels: every kind of file, the columns, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.zoo.factories import encode, picture
from zoo.base.errors import DataError, UsageError
from zoo.data.dataset import SPLITS, Dataset
from zoo.data.folders.reading import Reading, name_of
from zoo.data.lists.labelled_list import open_list
from zoo.training.recipe import Run

LABELS = [("cat", "dog")[index % 2] for index in range(40)]
PATHS = [f"images/{index}.png" for index in range(40)]
LINES = [f"{path},{label}" for path, label in zip(PATHS, LABELS, strict=True)]


@pytest.fixture
def root(tmp_path, output):
    folder = tmp_path / "pets"
    (folder / "images").mkdir(parents=True)
    for index, path in enumerate(PATHS):
        (folder / path).write_bytes(encode(picture(index)))
    return folder


def _open(root: Path, text: str, name: str = "labels.csv", **columns: str) -> Dataset:
    (root / name).write_text(text, encoding="utf-8")
    return open_list(root / name, reading=Reading(**columns))


def _found(dataset: Dataset) -> dict[str, str]:
    return {sample.name: dataset.labels[sample.label] for split in SPLITS for sample in dataset.splits[split]}


@pytest.mark.parametrize("header", ["path,label", "File Name,CLASS", "image_path,category", "filepath,species"])
def test_usual_names_of_columns(root, header):
    dataset = _open(root, "\n".join([header, *LINES]))
    assert _found(dataset) == dict(zip(PATHS, LABELS, strict=True))
    assert (dataset.name, dataset.labels) == ("pets-labels", ("cat", "dog"))
    assert dataset.location == str(root / "labels.csv")


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet", "semicolons", "windows"])
def test_every_kind_of_table_says_the_same(root, kind):
    rows = list(zip(PATHS, LABELS, strict=True))
    wanted = _open(root, "\n".join(["path,label", *LINES]))
    if kind == "parquet":
        columns = {"id": list(range(40)), "path": PATHS, "label": pa.array(LABELS).dictionary_encode()}
        pq.write_table(pa.table(columns), root / "list.parquet")
        found = open_list(root / "list.parquet")
    elif kind == "jsonl":
        found = _open(root, "\n\n".join(json.dumps({"path": p, "label": [name]}) for p, name in rows), "list.jsonl")
    elif kind == "tsv":
        found = _open(root, "\n".join(["path\tlabel", *(f"{path}\t{label}" for path, label in rows)]), "list.tsv")
    elif kind == "semicolons":
        found = _open(root, "\r\n".join(["\ufeffpath;label", *(f'"{path}";{label}' for path, label in rows)]))
    else:
        found = _open(root, "\n".join(["path, label", *(f"images\\{Path(p).name}, {name}" for p, name in rows)]))
    assert (found.splits, found.labels) == (wanted.splits, wanted.labels)


def test_absolute_paths_and_ways_around(root):
    lines = [f"{root / path},{label}" if index % 3 else f"../pets/./{path},{label}"
             for index, (path, label) in enumerate(zip(PATHS, LABELS, strict=True))]  # fmt: skip
    assert sorted(_found(_open(root, "\n".join(["path,label", *lines]))).values()) == sorted(LABELS)


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "dev", "testing")])
def test_a_column_of_splits(root, names):
    lines = [f"{line},{names[index % 3]}" for index, line in enumerate(LINES)]
    dataset = _open(root, "\n".join(["path,label,subset", *lines]))
    assert [len(dataset.splits[split]) for split in SPLITS] == [14, 13, 13]
    assert dataset.rule == "as they are given"
    assert {sample.name for sample in dataset.splits["validation"]} == set(PATHS[1::3])


def test_columns_that_are_named(root):
    text = "\n".join(["file,image,kind,set", *(f"{line.split(',')[0]},x,{line.split(',')[1]},A" for line in LINES)])
    with pytest.raises(
        DataError, match=r"'file', 'image' may each hold the paths; name the one of paths: --path-column"
    ):
        _open(root, text)
    with pytest.raises(DataError, match=r"no column has a usual name for labels .*'kind'.*--label-column NAME"):
        _open(root, text, path_column="file")
    with pytest.raises(UsageError, match=r"unknown column \(--label-column\) of labels.csv 'kinds'; did you mean kind"):
        _open(root, text, path_column="file", label_column="kinds")
    named = {"path_column": "file", "label_column": "kind"}
    with pytest.raises(
        DataError, match=r"row 1: expected train, .* in the column 'set', found 'A'.*--split-column none"
    ):
        _open(root, text, **named)
    assert _found(_open(root, text, **named, split_column="none")) == dict(zip(PATHS, LABELS, strict=True))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["cat|dog", "dog"], r"'cat\|dog' looks like several labels, cat and dog, but each image is to have one"),
        (["red;big", "blue;small"], r"looks like several labels"),
        (['"cat,dog"', "cat", "dog"], r"'cat,dog' looks like several labels"),
        (["a/b", "a", "b"], r"'a/b' looks like several labels"),
        (['"[""cat"", ""dog""]"', "cat"], r"row 1: several labels \(cat, dog\)"),
        (["\"['cat', 'dog']\"", "cat"], r"row 1: several labels \(cat, dog\)"),
    ],
)
def test_several_labels_in_a_cell_are_refused(root, values, message):
    lines = [f"{path},{values[index % len(values)]}" for index, path in enumerate(PATHS)]
    with pytest.raises(DataError, match=message):
        _open(root, "\n".join(["path,label", *lines]))


@pytest.mark.parametrize("names", [("tench, Tinca tinca", "goldfish"), ("AC/DC", "rock"), ("[old]", "new")])
def test_signs_in_names_of_one_label_are_none_of_several(root, names):
    lines = [f'{path},"{names[index % 2]}"' for index, path in enumerate(PATHS)]
    assert set(_open(root, "\n".join(["path,label", *lines])).labels) == {name.strip("[]") for name in names}


@pytest.mark.parametrize("again", ["images/0.png,dog", "./images/0.png,hen"])
def test_a_path_under_several_labels_is_refused(root, again):
    with pytest.raises(DataError, match=r"images/0\.png stands there with several labels \(cat, (dog|hen)\)"):
        _open(root, "\n".join(["path,label", *LINES, again]))


@pytest.mark.parametrize("values", [("1", "0"), ("True", "False"), ("1.0", "0.0")])
def test_a_column_for_each_label_is_refused(root, values):
    lines = [f"{path},{values[index % 2]},{values[1 - index % 2]}" for index, path in enumerate(PATHS)]
    with pytest.raises(
        DataError, match=r"columns cat, dog hold 0 and 1, a column for each label, as for several labels"
    ):
        _open(root, "\n".join(["path,cat,dog", *lines]))


def test_labels_of_json_and_parquet(root):
    rows = [{"path": path, "label": index % 2} for index, path in enumerate(PATHS)]
    assert _open(root, "\n".join(map(json.dumps, rows)), "a.jsonl").labels == ("0", "1")
    pq.write_table(pa.table({"path": PATHS, "label": pa.array([float(i % 3) for i in range(40)])}), root / "b.parquet")
    assert open_list(root / "b.parquet").labels == ("0", "1", "2")
    pq.write_table(pa.table({"path": PATHS, "label": [["cat", "dog"]] * 40}), root / "c.parquet")
    with pytest.raises(DataError, match="several labels"):
        open_list(root / "c.parquet")
    with pytest.raises(DataError, match=r"row 2: expected a label \(text or a whole number\), found 0\.5"):
        _open(root, "\n".join(json.dumps(row | {"label": row["label"] / 2}) for row in rows), "d.jsonl")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("images/99.png,cat", "missing"),
        ("images/none.heic,cat", "heic"),
        (",cat", "rows without a path"),
        ("images/1.png,", "rows without a label"),
        ("images,cat", "unreadable"),
        ('"images/a\tb.png",cat', "the name holds control characters; rename them"),
    ],
)
def test_rows_that_cannot_be_used_are_listed_and_many_refused(root, row, reason, monkeypatch):
    monkeypatch.setattr("zoo.data.lists.labelled_list.UNREAD", {".heic": "save them as JPEG"})
    dataset = _open(root, "\n".join(["path,label", *LINES, row]))
    (entry,) = dataset.unused
    assert reason in entry.reason and entry.lost and len(_found(dataset)) == 40
    with pytest.raises(DataError, match=r"3 of 43 images would not be used, more than 5%"):
        _open(root, "\n".join(["path,label", *LINES, row, row, row]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"images/1.png,cat\nimages/2.png,dog\n", r"expected the names of the columns in the first row"),
        ("a.csv", b"path,label\na,b,c\n", r"line 2: expected 2 cells separated by ',' as in the first line, found 3"),
        ("a.csv", "path,label\nä,b\n".encode("utf-16"), r"expected text in UTF-8"),
        ("a.csv", b"path,label\n\xff,b\n", r"expected text in UTF-8"),
        ("a.csv", b"path,path,label\n", r"expected distinct names of columns"),
        ("a.csv", b"", r"no column has a usual name for paths .*found no columns"),
        ("a.csv", b"path,label\n", r"expected at least two labels, found no rows"),
        ("a.csv", b"path,label\nimages/1.png,cat\n", r"expected at least two labels, found \['cat'\]"),
        (
            "a.csv",
            b"path,label,split\nimages/1.png,cat,val\nimages/2.png,dog,val\n",
            r"expected rows of the split `train`",
        ),
        ("a.csv", b"path,label\nimages/1.png,cat\nimages/2.png,Cat\n", r"differ only in case"),
        ("a.jsonl", b"[1, 2]\n", r"line 1: expected a JSON object, found \[1, 2\]"),
        ("a.jsonl", b'{"path": \n', r"line 1: expected one JSON object a line"),
        ("a.jsonl", b'{"path": 3, "label": "x"}\n', r"row 1: expected a path as text, found int"),
        ("a.parquet", b"no", r"cannot be read as Parquet"),
        ("a.txt", b"x", r"expected a folder of images, or a list .*\.csv, \.tsv"),
    ],
)
def test_lists_that_are_refused(root, name, content, message):
    (root / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_list(root / name)


def test_a_list_is_called_after_its_folder_and_itself(root, monkeypatch):
    _open(root, "\n".join(["path,label", *LINES]), "train.csv")
    monkeypatch.chdir(root)
    for data in ("train.csv", str(root / "train.csv"), "../pets/train.csv"):
        assert Run(data=data, model="lenet").artefact == "pets-train-lenet"
    assert [name_of(data) for data in ("../pets", ".", "mnist5k", "images")] == ["pets", "pets", "mnist5k", "images"]
