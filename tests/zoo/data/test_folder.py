"""Folders of images: layouts, dirt, and what is remembered of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.zoo.factories import encode, picture
from zoo.base.errors import DataError
from zoo.data import image_files as module
from zoo.data.dataset import SPLITS, Dataset
from zoo.data.folder import open_folder

pytestmark = pytest.mark.usefixtures("output")


def _fill(root: Path, groups: dict[str, int], *, start: int = 0) -> Path:
    """`{"train/cat": 4}` -> four different images in that folder."""
    for number, (place, count) in enumerate(groups.items()):
        (root / place).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / place / f"{index}.png").write_bytes(encode(picture(start + 1000 * number + index)))
    return root


def _counts(dataset: Dataset) -> list[int]:
    return [len(dataset.splits[split]) for split in SPLITS]


def _three(root: Path, val: str = "val") -> Path:
    return _fill(root, {"train/cat": 5, "train/dog": 4, f"{val}/cat": 3, f"{val}/dog": 2, "test/cat": 2, "test/dog": 2})


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_three_splits_are_taken_as_they_are(tmp_path, val):
    dataset = open_folder(_three(tmp_path / "pets", val))
    assert _counts(dataset) == [9, 5, 4]
    assert (dataset.name, dataset.labels, dataset.colour, dataset.photographs) == ("pets", ("cat", "dog"), "RGB", True)
    assert dataset.rule == "as the folders have them"
    assert dataset.location == str((tmp_path / "pets").resolve())
    sample = dataset.splits["train"][0]
    assert (sample.name, sample.label) == ("train/cat/0.png", 0)
    assert sample.read() == (tmp_path / "pets/train/cat/0.png").read_bytes()


@pytest.mark.parametrize(("held_out", "purpose"), [("val", "validation"), ("test", "test")])
def test_two_splits_the_held_out_one_is_the_test(tmp_path, held_out, purpose):
    groups = {"train/cat": 10, "train/dog": 20, f"{held_out}/cat": 3, f"{held_out}/dog": 2}
    dataset = open_folder(_fill(tmp_path, groups), seed=4)
    assert _counts(dataset) == [24, 6, 5]
    assert all(sample.name.startswith(held_out) for sample in dataset.splits["test"])
    assert dataset.rule == f"test is the folder `{purpose}`; validation is 20% of train, stratified, seed 4"


def test_only_train_is_split(tmp_path):
    dataset = open_folder(_fill(tmp_path, {"train/cat": 20, "train/dog": 20}))
    assert _counts(dataset) == [28, 6, 6]


def test_folders_of_classes_are_split(tmp_path):
    dataset = open_folder(_fill(tmp_path, {"cat": 20, "dog": 40}))
    assert _counts(dataset) == [42, 9, 9]
    assert dataset.rule == "stratified 70/15/15, seed 0"
    assert open_folder(tmp_path, seed=1).splits != dataset.splits
    assert open_folder(tmp_path).digest == dataset.digest


def test_three_images_of_a_class_suffice(tmp_path):
    assert _counts(open_folder(_fill(tmp_path, {"cat": 3, "dog": 3}))) == [2, 2, 2]


def test_names_with_spaces_hidden_files_and_other_files(tmp_path):
    _fill(tmp_path, {"big cat": 4, "dog (small)": 4, ".git/x": 1, "big cat/.thumbnails": 2, "notes": 0})
    (tmp_path / "big cat" / "a b ü.JPG").write_bytes(encode(picture(99), "JPEG"))
    for hidden in (".DS_Store", "._0.png", "readme.txt"):
        (tmp_path / "big cat" / hidden).write_bytes(b"no image")
    (tmp_path / "big cat" / "more").mkdir()
    (tmp_path / "big cat" / "more" / "deep.png").write_bytes(encode(picture(98)))
    dataset = open_folder(tmp_path)
    assert dataset.labels == ("big cat", "dog (small)")
    names = {sample.name for split in SPLITS for sample in dataset.splits[split] if sample.label == 0}
    assert names == {f"big cat/{index}.png" for index in range(4)} | {"big cat/a b ü.JPG", "big cat/more/deep.png"}
    assert dataset.skipped == ()


def test_a_few_corrupt_files_are_skipped_and_listed(tmp_path):
    _fill(tmp_path, {"cat": 10, "dog": 10})
    (tmp_path / "dog" / "3.png").write_bytes(b"\x89PNG junk")
    dataset = open_folder(tmp_path)
    assert sum(_counts(dataset)) == 19
    assert len(dataset.skipped) == 1
    assert dataset.skipped[0].startswith("dog/3.png: cannot decode the image: ")
    assert dataset.describe()["skipped"] == 1


def test_many_corrupt_files_are_an_error(tmp_path):
    _fill(tmp_path, {"cat": 10, "dog": 9})
    (tmp_path / "dog" / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 19 files are unreadable, more than 5%: dog/3\.png: the image is empty"):
        open_folder(tmp_path)


def test_one_image_in_two_splits(tmp_path):
    _three(tmp_path)
    (tmp_path / "val/dog/copy.png").write_bytes((tmp_path / "train/dog/1.png").read_bytes())
    with pytest.raises(DataError, match=r"1 image\(s\) .*train:train/dog/1\.png = .*val/dog/copy\.png"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"cat": 5}, r"a folder for each of at least two classes, found \['cat'\]"),
        ({}, r"found no images \(files ending in \.bmp, "),
        (
            {"train/cat": 3, "train/dog": 3, "val/cat": 3},
            r"class 'dog' has no images in validation; found there",
        ),
        ({"val/cat": 3, "test/cat": 3}, r"has test, validation but no `train` folder"),
        ({"train/cat": 3, "val/cat": 3, "valid/cat": 3}, r"val and valid both mean validation; keep one of them"),
        ({"cat": 5, "dog": 2}, r"the class of dog/0\.png has 2 distinct image\(s\), too few to split into 3 parts"),
    ],
)
def test_layouts_that_are_refused(tmp_path, groups, message):
    with pytest.raises(DataError, match=message):
        open_folder(_fill(tmp_path, groups | {".hidden/x": 0}))


def test_a_class_whose_only_held_out_picture_is_corrupt(tmp_path):
    _fill(tmp_path, {"train/cat": 20, "train/dog": 20, "val/cat": 20, "val/dog": 1})
    (tmp_path / "val/dog/0.png").write_bytes(b"junk")
    with pytest.raises(DataError, match="not every class has readable images in test"):
        open_folder(tmp_path)


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder at .*gone; expected train/CLASS/\*\.jpg and val/CLASS"):
        open_folder(tmp_path / "gone")


def test_every_file_is_read_once_and_remembered(tmp_path, output, monkeypatch):
    _fill(tmp_path / "pets", {"cat": 4, "dog": 4})
    read: list[str] = []
    original = module._verify_one
    monkeypatch.setattr(module, "_verify_one", lambda file: read.append(file.name) or original(file))
    first = open_folder(tmp_path / "pets")
    assert len(read) == 8
    assert [path.suffix for path in (output / ".index").iterdir()] == [".json"]
    read.clear()
    assert open_folder(tmp_path / "pets") == first
    assert read == []
    changed = tmp_path / "pets" / "cat" / "0.png"
    changed.write_bytes(encode(picture(555)))
    os.utime(changed, ns=(1, 1))
    assert open_folder(tmp_path / "pets").digest != first.digest
    assert "cat/0.png" in read


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_broken_memory_is_made_anew(tmp_path, output, content):
    first = open_folder(_fill(tmp_path / "pets", {"cat": 4, "dog": 4}))
    (memory,) = (output / ".index").iterdir()
    memory.write_bytes(content)
    assert open_folder(tmp_path / "pets") == first
    assert len(json.loads(memory.read_text())) == 8


def test_only_readable_files_are_remembered(tmp_path, output):
    _fill(tmp_path / "pets", {"cat": 10, "dog": 10})
    (tmp_path / "pets/cat/0.png").write_bytes(b"junk")
    first = open_folder(tmp_path / "pets")
    (memory,) = (output / ".index").iterdir()
    assert len(json.loads(memory.read_text())) == 19
    assert open_folder(tmp_path / "pets").skipped == first.skipped


@pytest.mark.parametrize("names", [("Training", "Testing"), ("TRAIN", "Val")])
def test_splits_are_known_in_any_case(tmp_path, output, names):
    for number, name in enumerate(names):
        _fill(tmp_path / "caps" / name, {"cat": 10, "dog": 10}, start=10_000 * number)
    dataset = open_folder(tmp_path / "caps")
    assert dataset.labels == ("cat", "dog")
    assert len(dataset.splits["test"]) == 20


def test_a_class_of_unknown_files_is_refused(tmp_path, output):
    _fill(tmp_path / "pets", {"cat": 10, "dog": 10})
    (tmp_path / "pets/hen").mkdir()
    (tmp_path / "pets/hen/1.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"pets/hen: a class without images that can be read; expected files ending"):
        open_folder(tmp_path / "pets")


def test_skipped_files_are_listed_to_the_user(tmp_path, output, capsys):
    _fill(tmp_path / "pets", {"cat": 20, "dog": 20})
    (tmp_path / "pets/cat/0.png").write_bytes(b"junk")
    open_folder(tmp_path / "pets")
    shown = capsys.readouterr().err
    assert "skipped cat/0.png: cannot decode the image" in shown
    assert "skipped 1 unreadable file(s) of 40" in shown
