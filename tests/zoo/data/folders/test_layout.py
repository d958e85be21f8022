"""Which folders are splits and which are classes."""

from __future__ import annotations

import pytest

from zoo.base.errors import DataError, UsageError
from zoo.data.folders.layout import find_layout
from zoo.data.folders.reading import Reading


def _layout(*folders: str, layout: str = "auto"):
    return find_layout([f"{folder}/1.png" for folder in folders], layout=layout, where="pets")


@pytest.mark.parametrize(
    ("folders", "splits", "flat"),
    [
        (("cat", "dog"), {}, ()),
        (("cat", "dog/deep"), {}, ()),
        (("train/cat", "val/cat"), {"train": "train", "val": "validation"}, ()),
        (("Training/cat", "TESTING/cat"), {"Training": "train", "TESTING": "test"}, ()),
        (("train/cat", "dev/cat", "test/cat"), {"train": "train", "dev": "validation", "test": "test"}, ()),
        (("train/train", "val/test"), {"train": "train", "val": "validation"}, ()),
        (("train/cat", "test"), {"train": "train", "test": "test"}, ("test",)),
        (("train/cat", "val", "test"), {"train": "train", "val": "validation", "test": "test"}, ("val", "test")),
    ],
)
def test_one_reading(folders, splits, flat):
    found = _layout(*folders)
    assert (found.splits, found.flat) == (splits, flat)


@pytest.mark.parametrize("name", ["train", "test", "Dev"])
def test_a_folder_named_like_a_split_beside_classes_is_a_class(name, capsys):
    assert _layout("cat", "dog", name).splits == {}
    assert f"{name} stands beside the class folders cat, dog, so it is a class, too" in capsys.readouterr().err


@pytest.mark.parametrize(
    "folders", [("cat", "train/red"), ("cat", "dog", "train/cat", "val/cat"), ("cat", "test/cat"), ("train", "test")]
)
def test_two_readings_are_named_with_the_flag(folders):
    with pytest.raises(DataError, match=r"pets can be read in two ways: .*--layout classes"):
        _layout(*folders)
    assert _layout(*folders, layout="classes").splits == {}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("val/cat", "test/cat"), r"expected class folders with images in `train`, found test, val, so no `train`"),
        (("train", "val/cat"), r"found train \(without class folders\), val, so no"),
        (("train/cat", "val/cat", "valid/cat"), r"val and valid both mean validation; keep one of them"),
        (("train/cat", "training/cat"), r"train and training both mean train"),
    ],
)
def test_no_reading(folders, message):
    with pytest.raises(DataError, match=message):
        _layout(*folders)


def test_splits_that_are_asked_for():
    assert _layout("cat", "train/red", layout="splits").splits == {"train": "train"}
    with pytest.raises(DataError, match="found no folder of a split"):
        _layout("cat", "dog", layout="splits")
    with pytest.raises(UsageError, match=r"unknown layout 'clases'; did you mean classes\?"):
        Reading(layout="clases")
