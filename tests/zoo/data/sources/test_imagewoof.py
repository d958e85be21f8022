"""ImageWoof from an archive in the official layout."""

from __future__ import annotations

import pytest

from tests.zoo.data import web
from zoo.base.errors import DataError
from zoo.data.catalogue import open_dataset
from zoo.data.dataset import SPLITS
from zoo.data.sources import imagewoof as module
from zoo.data.sources.imagewoof import imagewoof, imagewoof_clean

CLASSES = sorted(module._BREEDS)


def _files(edge: int = 320) -> dict[str, bytes]:
    """Of each class: train 10 + 2 of ImageNet's validation set, val 3 + 1."""
    seed, files = 0, {}
    for folder in CLASSES:
        for split, ours, theirs in (("train", 10, 2), ("val", 3, 1)):
            names = [f"{folder}_{split}{n}" for n in range(ours)] + [f"ILSVRC2012_val_{seed}{n}" for n in range(theirs)]
            for name in names:
                seed += 1
                files[f"imagewoof2-{edge}/{split}/{folder}/{name}.JPEG"] = web.photo(seed)
    return files | {f"imagewoof2-{edge}/noisy_imagewoof.csv": b"path"}


@pytest.fixture
def woof(site, data_home, monkeypatch):
    monkeypatch.setattr(module, "_ADDRESS", site.url("").rstrip("/"))
    site.files["imagewoof2-320.tgz"] = web.tgz(_files())


def _counts(dataset):
    return [len(dataset.splits[split]) for split in SPLITS]


def test_the_overlap_is_in_the_name_and_in_the_rule(woof):
    dataset = imagewoof(seed=5)
    assert _counts(dataset) == [100, 20, 40]
    assert dataset.labels[0] == "Shih-Tzu" and dataset.labels[9] == "Dingo"
    assert (dataset.name, dataset.location) == ("imagewoof (ImageNet-overlapping, 320 px)", "imagewoof")
    assert dataset.rule == (
        "test is ImageWoof val (ImageNet-overlapping: 30 of its 40 images, 75.0%, are named as ImageNet training "
        "images, which pretrained networks have seen); validation is 20% of train, stratified, seed 5"
    )
    assert all(CLASSES[sample.label] in sample.name for split in SPLITS for sample in dataset.splits[split])


def test_the_clean_probe_tests_on_imagenets_validation_images_only(woof):
    dataset = imagewoof_clean(seed=5)
    assert _counts(dataset) == [80, 20, 30]
    names = {split: [sample.name.rpartition("/")[2] for sample in dataset.splits[split]] for split in SPLITS}
    assert all(name.startswith("ILSVRC2012_val_") for name in names["test"])
    assert not any(name.startswith("ILSVRC2012_val_") for name in names["train"] + names["validation"])
    assert not any(sample.name.startswith("val/") for split in SPLITS[:2] for sample in dataset.splits[split])
    assert dataset.name == "imagewoof_clean (ILSVRC2012 val only, 320 px)"
    assert "the 30 images named ILSVRC2012_val_* (20 of them taken out of train)" in dataset.rule
    assert "the other 30 images of val are left out" in dataset.rule


def test_the_small_edition_has_its_own_archive(woof, site):
    site.files["imagewoof2-160.tgz"] = web.tgz(_files(160))
    dataset = open_dataset("imagewoof_clean_160")
    assert (dataset.name, dataset.location) == (
        "imagewoof_clean (ILSVRC2012 val only, 160 px)",
        "imagewoof_clean_160",
    )
    assert [path for path, _ in site.asked] == ["imagewoof2-160.tgz"]


def test_no_checksum_is_invented(woof, data_home, capsys):
    imagewoof()
    line = (data_home / "imagewoof2-320.tgz.sha256").read_text()
    assert f"imagewoof2-320.tgz: SHA-256 {line.split()[0]}; no checksum is published" in capsys.readouterr().err


def test_another_folder_than_the_ten_breeds(woof, site):
    site.files["imagewoof2-320.tgz"] = web.tgz({"imagewoof2-320/train/n01440764/a.JPEG": web.photo(0)})
    with pytest.raises(DataError, match=r"train: expected images in the folders \['n02086240'.*found \['n01440764'\]"):
        imagewoof()
