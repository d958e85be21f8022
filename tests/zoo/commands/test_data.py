"""The command `pocketzoo data`."""

from __future__ import annotations

import json

import pytest

from tests.conftest import run_cli
from tests.zoo.factories import encode, picture
from zoo.base.errors import UsageError
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
    assert text.endswith("skipped: 0 unreadable file(s)\n")


def test_a_folder_as_json(tmp_path):
    for label, count in (("cat", 8), ("dog", 40)):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for index in range(count):
            (tmp_path / "pets" / label / f"{index}.png").write_bytes(encode(picture(100 * len(label) + index + count)))
    (tmp_path / "pets/dog/0.png").write_bytes(b"broken")
    shown = json.loads(run_cli("data", tmp_path / "pets", "--seed", "3", "--json").stdout)
    dataset = open_dataset(str(tmp_path / "pets"), seed=3)
    assert shown["digest"] == dataset.digest and shown["rule"] == "stratified 70/15/15, seed 3"
    assert shown["splits"]["train"]["per_class"] == {"cat": 6, "dog": 27}
    assert shown["splits"]["train"] | {"per_class": None} == {
        "images": 33, "min": 6, "median": 16.5, "max": 27, "per_class": None
    }  # fmt: skip
    assert len(shown["skipped"]) == 1 and shown["skipped"][0].startswith("dog/0.png: ")


def test_an_unknown_name_has_close_matches():
    with pytest.raises(UsageError, match=r"'fashionmnist'; did you mean fashion_mnist"):
        run_cli("data", "fashionmnist")
    with pytest.raises(UsageError, match=r"thin\.keep: expected a share"):
        run_cli("data", "digits", "--thin", "3", "--keep", "2")
