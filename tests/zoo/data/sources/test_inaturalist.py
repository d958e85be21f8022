"""The ten-class excerpt of iNaturalist from a zip in the official layout."""

from __future__ import annotations

import pytest

from tests.zoo.data.web import photo, zipped
from zoo.base.errors import DataError
from zoo.data.dataset import SPLITS
from zoo.data.sources import inaturalist as module
from zoo.data.sources.inaturalist import inaturalist10

CLASSES = [
    "Amphibia", "Animalia", "Arachnida", "Aves", "Fungi", "Insecta", "Mammalia", "Mollusca", "Plantae", "Reptilia",
]  # fmt: skip


def _files(classes: list[str]) -> dict[str, bytes]:
    places = [(s, c, n) for s, count in (("train", 5), ("val", 2)) for c in classes for n in range(count)]
    files = {f"inaturalist_12K/{s}/{c}/{n}.jpg": photo(index) for index, (s, c, n) in enumerate(places)}
    return files | {"inaturalist_12K/train/.DS_Store": b"x", "__MACOSX/inaturalist_12K/._val": b"x"}


@pytest.fixture
def archive(site, data_home, monkeypatch):
    monkeypatch.setattr(module, "_URL", site.url("nature_12K.zip"))

    def publish(files):
        site.files["nature_12K.zip"] = zipped(files)

    return publish


def test_val_is_the_test(archive):
    archive(_files(CLASSES))
    dataset = inaturalist10(seed=8)
    assert dataset.labels == tuple(CLASSES)
    assert [len(dataset.splits[split]) for split in SPLITS] == [40, 10, 20]
    assert all(sample.name.startswith("val/") for sample in dataset.splits["test"])
    assert all(CLASSES[s.label] in s.name for split in SPLITS for s in dataset.splits[split])
    assert dataset.rule == "test is the folder `val`; validation is 20% of train, stratified, seed 8"


def test_a_few_unreadable_files_are_skipped_and_named(archive):
    files = _files(CLASSES)
    files["inaturalist_12K/train/Aves/3.jpg"] = b"broken"
    archive(files)
    dataset = inaturalist10()
    assert [(entry.file, entry.label, entry.reason) for entry in dataset.unused] == [
        ("train/Aves/3.jpg", "Aves", "unreadable")
    ]


@pytest.mark.parametrize("classes", [CLASSES[:9], [*CLASSES, "Protozoa"]])
def test_other_classes(archive, classes):
    archive(_files(classes))
    with pytest.raises(DataError, match=r"train: expected images in the folders \['Amphibia', .*right archive\?"):
        inaturalist10()
