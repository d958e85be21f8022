"""The command `pocketzoo data`."""

from __future__ import annotations

import json

import pytest

from tests.conftest import run_cli
from tests.zoo.factories import encode, picture
from zoo.base.errors import DataError, UsageError
from zoo.data.catalogue import DATASETS, open_dataset

pytestmark = pytest.mark.usefixtures("output")


def test_the_list_names_every_data_set_its_terms_and_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("POCKETZOO_DATA", str(tmp_path))
    text = run_cli("data").output
    lines = [line for line in text.splitlines() if line.startswith("│ ")]
    assert [cells[1].strip() for line in lines if (cells := line.split("│"))[1].strip()] == list(DATASETS)
    assert "CC BY-SA 4.0" in text and "7,349" in text
    assert text.splitlines()[-1] == f"Downloads go to {tmp_path} (set POCKETZOO_DATA for another place)."
    shown = json.loads(run_cli("data", "--json").output)
    assert shown["folder"] == str(tmp_path)
    assert shown["datasets"]["cifar10"] == {
        "classes": 10,
        "images": 60_000,
        "source": "https://www.cs.toronto.edu/~kriz/cifar.html",
        "terms": "not stated",
    }


def test_what_is_in_a_data_set():
    text = run_cli("data", "digits", "--thin", "3", "--keep", "0.5", "--labels", "0.1").output
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:6]]
        for line in text.splitlines()
        if len(cells := line.split("│")) > 5
    }
    assert rows["train"] == ["119", "6", "12.5", "13"]
    assert rows["test"] == ["269", "26", "27", "27"]
    assert rows["unlabelled"] == ["1,075", "-", "-", "-"]
    assert "digits: 10 classes, L; digest " in text
    assert "splits: stratified 70/15/15 by digest of the pixels, seed 5000; 0.5 of the train images of 3 kept" in text
    assert text.endswith("not used: 0 image(s), 0 other file(s)\n")


def test_a_folder_as_json(tmp_path):
    for label, count in (("cat", 8), ("dog", 40)):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for index in range(count):
            (tmp_path / "pets" / label / f"{index}.png").write_bytes(encode(picture(100 * len(label) + index + count)))
    (tmp_path / "pets/dog/0.png").write_bytes(b"broken")
    shown = json.loads(run_cli("data", tmp_path / "pets", "--seed", "3", "--json").stdout)
    dataset = open_dataset(str(tmp_path / "pets"), seed=3)
    assert (
        shown["digest"] == dataset.digest
        and shown["rule"] == "validation and test are 0.15 of all each, by digest, seed 3"
    )
    classes = shown["splits"]["train"]["per_class"]
    assert shown["splits"]["train"] == {
        "images": len(dataset.splits["train"]),
        "min": classes["cat"],
        "median": (classes["cat"] + classes["dog"]) / 2,
        "max": classes["dog"],
        "per_class": classes,
    }
    assert [entry | {"detail": ""} for entry in shown["unused"]] == [
        {"file": "dog/0.png", "reason": "unreadable", "label": "dog", "detail": "", "lost": True}
    ]


def test_what_can_be_read_in_two_ways_is_decided_by_options(tmp_path):
    root = tmp_path / "pets"
    for number, place in enumerate(("cat", "train/a", "train/b")):
        (root / place).mkdir(parents=True)
        for index in range(6):
            (root / place / f"{index}.png").write_bytes(encode(picture(100 * number + index)))
    with pytest.raises(DataError, match=r"two ways.*--layout splits.*--layout classes"):
        run_cli("data", root)
    labels = {
        layout: json.loads(run_cli("data", root, "--layout", layout, "--json").stdout)["labels"]
        for layout in ("splits", "classes")
    }
    assert labels == {"splits": ["a", "b"], "classes": ["cat", "train"]}
    (root / "list.csv").write_text(
        "a,b,c\n" + "".join(f"train/{kind}/{n}.png,{kind},A\n" for kind in "ab" for n in range(6))
    )
    columns = ("--path-column", "a", "--label-column", "b")
    shown = json.loads(run_cli("data", root / "list.csv", *columns, "--json").stdout)
    assert (shown["name"], shown["labels"], sum(shown["n"].values())) == ("pets-list", ["a", "b"], 12)
    with pytest.raises(DataError, match=r"row 1: expected train, .*found 'A'.*--split-column"):
        run_cli("data", root / "list.csv", *columns, "--split-column", "c")


def test_an_unknown_name_has_close_matches():
    with pytest.raises(UsageError, match=r"'fashionmnist'; did you mean fashion_mnist"):
        run_cli("data", "fashionmnist")
    with pytest.raises(UsageError, match=r"thin\.keep: expected a share"):
        run_cli("data", "digits", "--thin", "3", "--keep", "2")
