"""Oxford 102 Flowers from files in the official layout."""

from __future__ import annotations

import io

import numpy as np
import pytest
from scipy.io import savemat
from torchvision.datasets import Flowers102

from tests.zoo.data.web import md5, photo, tgz
from zoo.base.errors import DataError
from zoo.data.dataset import SPLITS
from zoo.data.sources.flowers import flowers102

PARTS = {"trnid": [3, 1, 8, 7], "valid": [2, 5], "tstid": [4, 6, 9]}
LABELS = [1, 2, 102, 1, 2, 102, 1, 2, 102]
"""Of the images 1 to 9; they count from 1."""


def _mat(**arrays: object) -> bytes:
    stream = io.BytesIO()
    savemat(stream, {name: np.array([values], np.uint8) for name, values in arrays.items()})
    return stream.getvalue()


@pytest.fixture
def flowers(site, data_home, monkeypatch):
    images = {f"jpg/image_{number:05d}.jpg": photo(number) for number in range(1, 10)}
    images["jpg/image_00008.jpg"] = images["jpg/image_00002.jpg"]
    files = {"102flowers.tgz": tgz(images), "imagelabels.mat": _mat(labels=LABELS), "setid.mat": _mat(**PARTS)}
    site.files.update(files)
    monkeypatch.setattr(Flowers102, "_download_url_prefix", site.url(""))
    kinds = zip(("image", "label", "setid"), files.items(), strict=True)
    monkeypatch.setattr(Flowers102, "_file_dict", {kind: (name, md5(content)) for kind, (name, content) in kinds})
    return images


def test_all_three_splits_are_official(flowers, site):
    dataset = flowers102()
    assert len(dataset.labels) == 102 and dataset.labels[101] == "blackberry lily"
    found = {split: [(s.name, s.label) for s in dataset.splits[split]] for split in SPLITS}
    assert found["train"] == [("image_00003.jpg", 101), ("image_00001.jpg", 0), ("image_00007.jpg", 0)]
    assert found["validation"] == [("image_00002.jpg", 1), ("image_00005.jpg", 1)]
    assert found["test"] == [("image_00004.jpg", 0), ("image_00006.jpg", 101), ("image_00009.jpg", 101)]
    assert dataset.rule == (
        "the official training, validation and test splits; "
        "1 image(s) dropped from train, copies of images of validation or test"
    )
    assert dataset.splits["test"][0].read() == flowers["jpg/image_00004.jpg"]
    assert sorted(path for path, _ in site.asked) == ["102flowers.tgz", "imagelabels.mat", "setid.mat"]
    assert flowers102(seed=9).digest == dataset.digest


def test_changed_lists_are_refused(flowers, site, data_home):
    flowers102()
    (data_home / "flowers-102/setid.mat").write_bytes(_mat(trnid=[1], valid=[2], tstid=[3]))
    with pytest.raises(DataError, match=r"setid\.mat: expected MD5"):
        flowers102()


def test_addresses_and_checksums_are_torchvisions():
    assert Flowers102._download_url_prefix.startswith("https://www.robots.ox.ac.uk/~vgg/data/flowers/102/")
    assert sorted(Flowers102._file_dict) == ["image", "label", "setid"]
    assert all(len(md5) == 32 for _, md5 in Flowers102._file_dict.values())
