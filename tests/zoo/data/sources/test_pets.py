"""Oxford-IIIT Pet from archives in the official layout."""

from __future__ import annotations

from collections import Counter

import pytest
from torchvision.datasets import OxfordIIITPet

from tests.zoo.data.web import md5, photo, tgz
from zoo.base.errors import DataError, UsageError
from zoo.data.catalogue import open_dataset
from zoo.data.dataset import SPLITS
from zoo.data.sources.pets import oxford_pet, oxford_pet_species
from zoo.data.splits import Thin

BREEDS = {"Abyssinian": 1, "american_bulldog": 2, "Sphynx": 1, "yorkshire_terrier": 2}
"""In the order of the labels; 1 is a cat, 2 a dog."""
PARTS = {"trainval": range(1, 11), "test": range(11, 15)}


@pytest.fixture
def pets(site, data_home, monkeypatch):
    """10 images of each breed in trainval, 4 in test; one of the test's is in trainval too."""
    images, lists = {}, {}
    for part, numbers in PARTS.items():
        lines = []
        for label, (breed, kind) in enumerate(BREEDS.items()):
            for number in numbers:
                images[f"images/{breed}_{number}.jpg"] = photo(100 * label + number)
                lines.append(f"{breed}_{number} {label + 1} {kind} 1\n")
        lists[f"annotations/{part}.txt"] = "".join(lines).encode()
    images["images/Sphynx_3.jpg"] = images["images/Sphynx_12.jpg"]
    images["images/Abyssinian_101.mat"] = b"of no use"
    lists["annotations/list.txt"] = b"#Image CLASS-ID SPECIES BREED ID\n"
    archives = {"images.tar.gz": tgz(images), "annotations.tar.gz": tgz(lists)}
    site.files.update(archives)
    monkeypatch.setattr(
        OxfordIIITPet, "_RESOURCES", [(site.url(name), md5(content)) for name, content in archives.items()]
    )
    return images


def test_breeds_with_the_official_test(pets, data_home):
    dataset = oxford_pet(seed=3)
    assert dataset.labels == ("Abyssinian", "American Bulldog", "Sphynx", "Yorkshire Terrier")
    assert {sample.name for sample in dataset.splits["test"]} == {f"{b}_{n}.jpg" for b in BREEDS for n in PARTS["test"]}
    assert [Counter(s.label for s in dataset.splits["validation"])[label] for label in range(4)] == [2, 2, 2, 2]
    assert sum(len(dataset.splits[split]) for split in SPLITS) == 4 * 14 - 1
    for split in SPLITS:
        for sample in dataset.splits[split]:
            assert sample.read() == pets[f"images/{sample.name}"]
            assert list(BREEDS)[sample.label] == sample.name.rpartition("_")[0]
    assert dataset.groups == {"cats": ("Abyssinian", "Sphynx"), "dogs": ("American Bulldog", "Yorkshire Terrier")}
    assert (dataset.name, dataset.location, dataset.photographs) == ("oxford_pet", "oxford_pet", True)
    assert dataset.digest == oxford_pet(seed=3).digest != oxford_pet(seed=4).digest


def test_the_copy_of_a_test_image_is_not_trained_on(pets):
    dataset = oxford_pet(seed=0)
    kept = {sample.name for split in ("train", "validation") for sample in dataset.splits[split]}
    assert "Sphynx_3.jpg" not in kept and len(kept) == 39
    assert "Sphynx_12.jpg" in {sample.name for sample in dataset.splits["test"]}
    start = "test is the official test split; validation is 20% of train, stratified, seed 0; 1 image(s) dropped from "
    assert dataset.rule.startswith(start)


def test_species_have_the_same_splits_of_images(pets):
    breeds, species = oxford_pet(seed=1), oxford_pet_species(seed=1)
    assert (species.name, species.labels, species.groups) == ("oxford_pet_species", ("cat", "dog"), {})
    for split in SPLITS:
        pairs = list(zip(breeds.splits[split], species.splits[split], strict=True))
        assert pairs and all(a.name == b.name and b.label == (0 if a.name[0].isupper() else 1) for a, b in pairs)


def test_a_second_opening_needs_no_server(pets, site):
    oxford_pet()
    asked = len(site.asked)
    assert asked == 2
    site.files.clear()
    assert oxford_pet().digest == oxford_pet().digest
    assert len(site.asked) == asked


def test_cats_thinned_to_a_fifth(pets):
    whole = open_dataset("oxford_pet")
    thinned = open_dataset("oxford_pet", thin=Thin(classes=("cats",), keep=0.25))
    before, after = (Counter(s.label for s in dataset.splits["train"]) for dataset in (whole, thinned))
    assert [after[label] for label in (1, 3)] == [before[1], before[3]] == [8, 8]
    assert [after[label] for label in (0, 2)] == [2, 2]
    assert all(thinned.splits[split] == whole.splits[split] for split in ("validation", "test"))
    with pytest.raises(UsageError, match="unknown class or group of oxford_pet 'cat'; did you mean cats"):
        open_dataset("oxford_pet", thin=Thin(classes=("cat",), keep=0.25))


def test_a_picture_without_a_file(site, pets, monkeypatch):
    del pets["images/Sphynx_5.jpg"]
    content = tgz(pets)
    site.files["images.tar.gz"] = content
    resources = [(OxfordIIITPet._RESOURCES[0][0], md5(content)), OxfordIIITPet._RESOURCES[1]]
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)
    with pytest.raises(DataError, match=r"an image is missing: .*Sphynx_5\.jpg"):
        oxford_pet()


def test_lists_of_another_form(site, pets, monkeypatch):
    content = tgz({"annotations/trainval.txt": b"Sphynx_1 1\n", "annotations/test.txt": b""})
    site.files["annotations.tar.gz"] = content
    resources = [OxfordIIITPet._RESOURCES[0], (OxfordIIITPet._RESOURCES[1][0], md5(content))]
    monkeypatch.setattr(OxfordIIITPet, "_RESOURCES", resources)
    with pytest.raises(DataError, match=r"annotations: not as published"):
        oxford_pet()


def test_addresses_and_checksums_are_torchvisions():
    assert [(url.rpartition("/")[2], len(md5)) for url, md5 in OxfordIIITPet._RESOURCES] == [
        ("images.tar.gz", 32),
        ("annotations.tar.gz", 32),
    ]
    assert all(url.startswith("https://www.robots.ox.ac.uk/~vgg/data/pets/") for url, _ in OxfordIIITPet._RESOURCES)
