"""Folders of images: what is read out of them, what is not and why."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest

from tests.zoo.factories import encode, picture
from zoo.base.errors import DataError
from zoo.data.dataset import SPLITS, Dataset
from zoo.data.folders.folder import open_folder
from zoo.data.folders.reading import Reading
from zoo.data.folders.unused import write_unused

pytestmark = pytest.mark.usefixtures("output")


@pytest.fixture
def root(tmp_path):
    """An empty folder beside the one of artefacts."""
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def _fill(root: Path, groups: dict[str, int], *, start: int = 0) -> Path:
    """`{"train/cat": 4}` -> four different images in that folder."""
    for number, (place, count) in enumerate(groups.items()):
        (root / place).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / place / f"{index}.png").write_bytes(encode(picture(start + 1000 * number + index)))
    return root


def _counts(dataset: Dataset) -> list[int]:
    return [len(dataset.splits[split]) for split in SPLITS]


def _per_class(dataset: Dataset, split: str) -> dict[str, int]:
    found = [dataset.labels[sample.label] for sample in dataset.splits[split]]
    return {label: found.count(label) for label in dataset.labels}


def _reasons(dataset: Dataset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for entry in dataset.unused:
        found.setdefault(entry.reason, []).append(entry.file)
    return found


def _three(root: Path, val: str = "val") -> Path:
    return _fill(root, {"train/cat": 5, "train/dog": 4, f"{val}/cat": 3, f"{val}/dog": 2, "test/cat": 2, "test/dog": 2})


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Dev"])
def test_three_splits_are_taken_as_they_are(root, val):
    dataset = open_folder(_three(root / "pets", val))
    assert _counts(dataset) == [9, 5, 4]
    assert (dataset.name, dataset.labels, dataset.colour, dataset.photographs) == ("pets", ("cat", "dog"), "RGB", True)
    assert dataset.rule == "as they are given" and dataset.unused == ()
    assert dataset.location == str((root / "pets").resolve())
    sample = dataset.splits["train"][0]
    assert (sample.name, sample.label) == ("train/cat/0.png", 0)
    assert sample.read() == (root / "pets/train/cat/0.png").read_bytes()


@pytest.mark.parametrize(("held_out", "purpose"), [("val", "validation"), ("test", "test"), ("testing", "test")])
def test_two_splits_the_held_out_one_is_the_test(root, held_out, purpose):
    groups = {"train/cat": 50, "train/dog": 100, f"{held_out}/cat": 3, f"{held_out}/dog": 2}
    dataset = open_folder(_fill(root, groups), seed=4)
    assert sum(_counts(dataset)[:2]) == 150 and _counts(dataset)[2] == 5
    assert 15 <= _counts(dataset)[1] <= 45
    assert all(sample.name.startswith(held_out) for sample in dataset.splits["test"])
    assert dataset.rule == f"test is the given {purpose}; validation is 0.2 of train, by digest, seed 4"


def test_folders_of_classes_are_split(root):
    dataset = open_folder(_fill(root, {"cat": 100, "dog": 200}))
    assert dataset.rule == "validation and test are 0.15 of all each, by digest, seed 0"
    for split in ("validation", "test"):
        assert dict(_per_class(dataset, split)) == pytest.approx({"cat": 15, "dog": 30}, abs=12)
    assert open_folder(root, seed=1).splits != dataset.splits
    assert open_folder(root).digest == dataset.digest


def test_a_file_that_is_added_leaves_the_others_where_they_are(root):
    before = open_folder(_fill(root, {"cat": 30, "dog": 30}))
    _fill(root, {"cat/more": 5, "hen": 20}, start=50_000)
    after = open_folder(root)
    sides = {sample.digest: split for split, samples in after.splits.items() for sample in samples}
    for split, samples in before.splits.items():
        assert {sides[sample.digest] for sample in samples} == {split}


@pytest.mark.parametrize(
    "groups", [{"cat": 30, "dog": 30, "hen": 1}, {"train/cat": 30, "train/dog": 30, "train/hen": 1}]
)
def test_a_class_of_one_image_is_trained_on_and_not_measured(root, groups, capsys):
    dataset = open_folder(_fill(root, groups))
    assert [_per_class(dataset, split)["hen"] for split in SPLITS] == [1, 0, 0]
    shown = capsys.readouterr().err
    assert "1 of 3 classes without images in validation: hen; measured without" in shown
    assert "1 of 3 classes without images in test: hen" in shown


@pytest.mark.parametrize("lacking", ["val", "test"])
def test_a_class_that_is_held_out_nowhere_is_reported(root, lacking, capsys):
    root = _three(root)
    _fill(root, {"train/hen": 4, "val/hen": 2, "test/hen": 2}, start=70_000)
    shutil.rmtree(root / lacking / "hen")
    dataset = open_folder(root)
    split = {"val": "validation", "test": "test"}[lacking]
    assert dataset.labels == ("cat", "dog", "hen") and _per_class(dataset, split)["hen"] == 0
    assert f"1 of 3 classes without images in {split}: hen; measured without" in capsys.readouterr().err


def test_what_is_no_image_is_counted_by_reason_and_class(root, capsys):
    _fill(root, {"big cat": 40, "dog (small)": 40, ".git/x": 1, "notes": 0})
    (root / "big cat" / "a b ü.JPG").write_bytes(encode(picture(99), "JPEG"))
    for place in ("big cat/.DS_Store", "big cat/._0.png", "big cat/Thumbs.db", "big cat/readme.txt", "notes/x.xml"):
        (root / place).write_bytes(b"no image")
    for place in ("dog (small)/@eaDir/0.png", "__MACOSX/big cat/0.png", "big cat/more/deep.png"):
        (root / place).parent.mkdir(parents=True)
        (root / place).write_bytes(encode(picture(98)))
    dataset = open_folder(root)
    assert dataset.labels == ("big cat", "dog (small)")
    names = {sample.name for split in SPLITS for sample in dataset.splits[split] if sample.label == 0}
    assert names == {f"big cat/{index}.png" for index in range(40)} | {"big cat/a b ü.JPG", "big cat/more/deep.png"}
    systems = ["__MACOSX/", "big cat/.DS_Store", "big cat/._0.png", "big cat/Thumbs.db", "dog (small)/@eaDir/"]
    assert _reasons(dataset) == {
        "hidden: their names begin with a full stop": [".git/"],
        "left by operating systems and file servers": systems,
        "no images (.txt)": ["big cat/readme.txt"],
        "no images (.xml)": ["notes/x.xml"],
    }
    assert dataset.describe()["skipped"] == 0
    shown = capsys.readouterr().err
    assert "5 not used: left by operating systems and file servers (big cat 3, dog (small) 1; __MACOSX/)" in shown
    assert len(shown.splitlines()) == 4


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("1.heic", None, r"\.heic files, which are not read here; pip install"),
        ("1.JXL", None, r"\.jxl files, which are not read here; save them as JPEG"),
        ("1.png", None, "unreadable"),
        ("1", "JPEG", "images without a suffix of images"),
        ("1.dat", "WEBP", "images without a suffix of images"),
    ],
)
def test_a_few_lost_images_are_listed_and_many_refused(root, name, kind, reason, monkeypatch):
    monkeypatch.setattr("zoo.data.folders.walk.SUFFIXES", frozenset({".png", ".jpg"}))
    monkeypatch.setattr("zoo.data.folders.walk.UNREAD", {".heic": "pip install x", ".jxl": "save them as JPEG"})
    _fill(root, {"cat": 20, "dog": 19})
    (root / "dog" / name).write_bytes(encode(picture(7), kind) if kind else b"\x89PNG junk")
    dataset = open_folder(root)
    lost = [entry for entry in dataset.unused if entry.lost]
    assert [(entry.file, entry.label) for entry in lost] == [(f"dog/{name}", "dog")]
    assert dataset.describe()["skipped"] == 1 and sum(_counts(dataset)) == 39 - (name == "1.png")
    for number in range(3):
        (root / "cat" / f"{number}{name}").write_bytes((root / "dog" / name).read_bytes())
    with pytest.raises(DataError, match=rf"4 of \d+ images would not be used, more than 5%: {reason}.*\(cat 3, dog 1"):
        open_folder(root)


@pytest.mark.parametrize("kind", ["JPEG", "AVIF", "MPO"])
def test_rarer_suffixes(root, kind):
    _fill(root, {"cat": 5, "dog": 5})
    suffix = {"JPEG": "jfif", "AVIF": "avif", "MPO": "mpo"}[kind]
    (root / "cat" / f"x.{suffix}").write_bytes(encode(picture(77), kind))
    assert sum(_counts(open_folder(root))) == 11


def test_copies_of_held_out_images_leave_training_and_the_list_says_so(root, capsys):
    _fill(root, {"train/cat": 30, "train/dog": 30, "val/cat": 5, "val/dog": 5, "test/cat": 5, "test/dog": 5})
    shutil.copy(root / "test/dog/0.png", root / "train/dog/copy.png")
    shutil.copy(root / "test/cat/1.png", root / "val/cat/copy.png")
    shutil.copy(root / "train/cat/1.png", root / "train/cat/again.png")
    dataset = open_folder(root)
    assert _counts(dataset) == [61, 10, 10]
    assert _reasons(dataset) == {
        "in train, copies of images of validation or test": ["train/dog/copy.png"],
        "in validation, copies of images of test": ["val/cat/copy.png"],
    }
    assert (
        "1 not used: in train, copies of images of validation or test (dog 1; train/dog/copy" in capsys.readouterr().err
    )
    write_unused(dataset.unused, root / "unused.csv")
    with (root / "unused.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file"], row["class"]) for row in rows] == [("train/dog/copy.png", "dog"), ("val/cat/copy.png", "cat")]
    write_unused((), root / "unused.csv")
    assert not (root / "unused.csv").exists()


@pytest.mark.parametrize("places", [("cat", "dog"), ("train/cat", "val/dog")])
def test_an_image_under_two_labels_is_used_under_none(root, places):
    nested = "/" in places[0]
    kinds = ("train/cat", "train/dog", "val/cat", "val/dog") if nested else ("cat", "dog")
    _fill(root, dict.fromkeys(kinds, 30))
    shutil.copy(root / places[0] / "3.png", root / places[1] / "other.png")
    dataset = open_folder(root)
    assert _reasons(dataset) == {
        "the same image under several labels": [f"{places[0]}/3.png", f"{places[1]}/other.png"]
    }
    assert sum(_counts(dataset)) == 30 * len(kinds) - 1
    for number in range(4):
        shutil.copy(root / places[0] / f"{number}.png", root / places[1] / f"more{number}.png")
    with pytest.raises(DataError, match=r"more than 5%: the same image under several labels"):
        open_folder(root)


def test_links_are_followed_but_not_in_circles(root):
    store = _fill(root.parent / "store", {"x/deep": 6, "one": 1})
    root = _fill(root / "pets", {"cat": 20}, start=5000)
    (root / "dog").symlink_to(store / "x")
    (root / "cat/linked.png").symlink_to(store / "one/0.png")
    (root / "cat/gone.png").symlink_to("nowhere.png")
    (root / "cat/up").symlink_to(root)
    (store / "x/round").symlink_to(store / "x")
    dataset = open_folder(root)
    assert [sum(_per_class(dataset, split)[label] for split in SPLITS) for label in ("cat", "dog")] == [21, 6]
    assert _reasons(dataset) == {
        "links to nothing": ["cat/gone.png"],
        "links back to a folder that they are in": ["cat/up/", "dog/round/"],
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((b"cat", b"d\xffg"), r"the name of the folder .*d\\udcffg is no text in this system's encoding; rename it"),
        ((b"cat", b"do\ng"), r"the name of the folder .*do\\ng holds control characters"),
        ((b"cat", b"do\x7fg"), r"holds control characters"),
        ((b"cat", b"Cat"), r"the classes 'Cat' and 'cat' differ only in case; give both the same name"),
        ((b"big cat", b"big  cat"), r"differ only in blanks"),
        ((b"cat", b"cat "), r"'cat' and 'cat ' differ only in blanks"),
        (("é".encode(), "e\u0301".encode()), r"'e\\u0301' and '\\xe9' differ only in Unicode normal form"),
        ((b"cat", b" "), r"the name of the class ' ' is empty"),
    ],
)
def test_names_of_classes_that_are_refused(root, names, message):
    for number, name in enumerate((*names, b"hen")):
        folder = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        _fill(folder, {".": 5}, start=1000 * number)
    with pytest.raises(DataError, match=message):
        open_folder(root)


def test_splits_may_spell_a_class_in_several_normal_forms(root):
    _fill(root, {"train/caf\u00e9": 9, "train/dog": 9, "val/cafe\u0301": 3, "val/dog": 3})
    dataset = open_folder(root)
    assert dataset.labels == ("caf\u00e9", "dog") and _per_class(dataset, "test") == {"caf\u00e9": 3, "dog": 3}


def test_the_folder_of_artefacts_is_no_class(output):
    root = _fill(output.parent, {"cat": 9, "dog": 9})
    _fill(output, {"pets-resnet18": 3}, start=90_000)
    dataset = open_folder(root)
    assert dataset.labels == ("cat", "dog")
    assert _reasons(dataset) == {"the folder that artefacts are written to": [f"{output.name}/"]}


def test_names_of_files_that_are_no_text_are_listed(root):
    _fill(root, {"cat": 30, "dog": 30})
    for name in (b"a\xff.png", b"b\nc.png"):
        target = os.fsencode(root) + b"/cat/" + name
        Path(os.fsdecode(target)).write_bytes(encode(picture(len(name) + 500)))
    dataset = open_folder(root)
    assert sorted(_reasons(dataset)) == [
        "the name holds control characters; rename them",
        "the name is no text in this system's encoding; rename them",
    ]
    write_unused(dataset.unused, root / "unused.csv")
    assert r"cat/a\udcff.png" in (root / "unused.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"cat": 5}, r"a folder for each of at least two classes, found \['cat'\]"),
        ({}, r"found no images \(files ending in \.apng, "),
        ({"photos/cat": 5, "photos/dog": 5}, r"it has the folders cat, dog: name it, --data .*photos"),
        ({"train/cat": 3, "train/dog": 3, "val/hen": 3}, r"the class 'hen' has no images in train"),
        ({"train/cat": 9, "train/dog": 9, "val/cat": 0}, None),
    ],
)
def test_what_is_missing(root, groups, message):
    root = _fill(root, groups | {".hidden/x": 0})
    if message is None:
        assert sum(_counts(open_folder(root))) == 18
        return
    with pytest.raises(DataError, match=message):
        open_folder(root)


def test_a_list_beside_the_images_is_pointed_at(root):
    (_fill(root, {"images": 5}) / "labels.csv").write_text("path,label\n")
    with pytest.raises(DataError, match=r"if labels\.csv is a list of paths and labels, name it: --data .*labels\.csv"):
        open_folder(root)


@pytest.mark.parametrize("broken", ["heic", "png"])
def test_a_class_without_any_image_that_can_be_read_is_refused(root, broken):
    _fill(root, {"cat": 30, "dog": 30, "hen": 0})
    (root / f"hen/1.{broken}").write_bytes(b"x")
    with pytest.raises(DataError, match=r"the class 'hen' has no images"):
        open_folder(root)


def test_a_missing_folder(root):
    with pytest.raises(DataError, match=r"no folder at .*gone; expected train/CLASS/\*\.jpg and val/CLASS"):
        open_folder(root / "gone")


def test_the_layout_that_was_named_is_the_one_that_is_read(root):
    root = _fill(root / "pets", {"cat": 9, "train/red": 9, "train/blue": 9})
    with pytest.raises(DataError, match=r"two ways.*--layout splits.*--layout classes"):
        open_folder(root)
    assert open_folder(root, reading=Reading(layout="classes")).labels == ("cat", "train")
    split = open_folder(root, reading=Reading(layout="splits"))
    assert split.labels == ("blue", "red") and list(_reasons(split)) == ["beside the folders of splits"]
