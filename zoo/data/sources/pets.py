"""Oxford-IIIT Pet: 37 breeds of cats and dogs, official test split.

Parkhi, Vedaldi, Zisserman & Jawahar 2012, Cats and Dogs; https://www.robots.ox.ac.uk/~vgg/data/pets/
3,680 images in trainval, 3,669 in test. Numbers measured on random splits of all images are not comparable.
"""

from __future__ import annotations

import dataclasses

from zoo.base.errors import DataError
from zoo.data.dataset import Dataset
from zoo.data.folders.image_files import ImageFile, read_image_files
from zoo.data.sources.download import Remote, data_root, unpack
from zoo.data.sources.official import official_dataset

__all__ = ["oxford_pet", "oxford_pet_species"]

_SPECIES = ("cat", "dog")


def oxford_pet(seed: int = 0) -> Dataset:
    """The 37 breeds; the groups `cats` (12 breeds) and `dogs` (25) may stand for their breeds.

    Args:
        seed: of the validation images, which are carved out of trainval.

    Raises:
        DataError: it cannot be downloaded, or the files are not as published.
    """
    return _open("oxford_pet", seed)


def oxford_pet_species(seed: int = 0) -> Dataset:
    """The same images and splits of images, labelled cat or dog; arguments and errors of :func:`oxford_pet`."""
    return _open("oxford_pet_species", seed)


def _open(name: str, seed: int) -> Dataset:
    from torchvision.datasets import OxfordIIITPet

    root = data_root()
    for (url, md5), folder in zip(OxfordIIITPet._RESOURCES, ("images", "annotations"), strict=True):
        unpack(Remote(url=url, md5=md5), root / "oxford-iiit-pet", [folder])
    try:
        official = {split: OxfordIIITPet(str(root), split=split) for split in ("trainval", "test")}
    except (OSError, ValueError) as error:
        raise DataError(f"{root / 'oxford-iiit-pet' / 'annotations'}: not as published: {error}") from error
    breeds = tuple(official["trainval"].classes)
    # The third column of the lists: 1 cat, 2 dog. It agrees with the capital letter that the files of cats begin with.
    species = {
        breeds[label]: _SPECIES[kind]
        for label, kind in zip(official["trainval"]._labels, official["trainval"]._bin_labels, strict=True)
    }
    files = {
        split: [
            ImageFile(path, path.name, breeds[label])
            for path, label in zip(official[part]._images, official[part]._labels, strict=True)
        ]
        for split, part in (("train", "trainval"), ("test", "test"))
    }
    samples, unused = read_image_files(files, breeds, root / "oxford-iiit-pet")
    dataset = official_dataset(name, breeds, samples, seed=seed, unused=unused)
    groups = {f"{kind}s": tuple(breed for breed in breeds if species[breed] == kind) for kind in _SPECIES}
    dataset = dataclasses.replace(dataset, groups=groups)
    return dataset if name == "oxford_pet" else _by_species(dataset, species)


def _by_species(dataset: Dataset, species: dict[str, str]) -> Dataset:
    labels = [_SPECIES.index(species[breed]) for breed in dataset.labels]
    splits = {
        split: [dataclasses.replace(sample, label=labels[sample.label]) for sample in samples]
        for split, samples in dataset.splits.items()
    }
    return dataclasses.replace(dataset, labels=_SPECIES, splits=splits, groups={})
