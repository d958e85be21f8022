"""ImageWoof: ten breeds of dogs out of ImageNet, and how little its `val` folder says about ImageNet networks.

Howard 2019; https://github.com/fastai/imagenette
Of the 3,929 images in `val`, 3,767 (95.9 %) have the file names of ImageNet's *training* images: a network that was
pretrained on ImageNet has seen them with their labels. Exactly 500 images (162 in `val`, 338 in `train`) come from
ImageNet's validation set; they are the only clean test.

The publisher gives no checksum of the whole files (fastai's own list has the size and the MD5 of the first MiB of an
older upload), so the first download is trusted: see zoo.data.sources.download.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from zoo.data.dataset import Dataset, Sample
from zoo.data.folders.image_files import read_image_files
from zoo.data.folders.unused import Unused
from zoo.data.sources.download import Remote, data_root, unpack
from zoo.data.sources.official import official_dataset, train_and_val

__all__ = ["imagewoof", "imagewoof_clean"]

_ADDRESS = "https://s3.amazonaws.com/fast-ai-imageclas"
_CLEAN = "ILSVRC2012_val_"
"""How the names of files from ImageNet's validation set begin; those of its training set begin with the class."""
_BREEDS = {
    "n02086240": "Shih-Tzu",
    "n02087394": "Rhodesian ridgeback",
    "n02088364": "Beagle",
    "n02089973": "English foxhound",
    "n02093754": "Border terrier",
    "n02096294": "Australian terrier",
    "n02099601": "Golden retriever",
    "n02105641": "Old English sheepdog",
    "n02111889": "Samoyed",
    "n02115641": "Dingo",
}


def imagewoof(seed: int = 0, *, edge: int = 320) -> Dataset:
    """Ten breeds; the test is the official `val` folder, and the data set's name says what that is worth.

    Args:
        seed: of the validation images, which are carved out of `train`.
        edge: length of the shorter edge, in pixels: 160 or 320.

    Raises:
        DataError: it cannot be downloaded, or the files are not as published.
    """
    train, test, unused = _read(edge)
    seen = sum(not _is_clean(sample) for sample in test)
    held_out = (
        f"ImageWoof val (ImageNet-overlapping: {seen} of its {len(test)} images, {seen / len(test):.1%}, "
        "are named as ImageNet training images, which pretrained networks have seen)"
    )
    return _dataset("imagewoof", "ImageNet-overlapping", edge, train, test, seed, held_out, unused)


def imagewoof_clean(seed: int = 0, *, edge: int = 320) -> Dataset:
    """Ten breeds; the test is the images of ImageNet's validation set, none of which is trained on.

    What else the `val` folder has is left out. Arguments and errors of :func:`imagewoof`.
    """
    train, val, unused = _read(edge)
    test = [sample for sample in [*val, *train] if _is_clean(sample)]
    rest = [sample for sample in train if not _is_clean(sample)]
    held_out = (
        f"the {len(test)} images named {_CLEAN}* ({len(train) - len(rest)} of them taken out of train); "
        f"the other {len(val) - sum(map(_is_clean, val))} images of val are left out"
    )
    return _dataset("imagewoof_clean", "ILSVRC2012 val only", edge, rest, test, seed, held_out, unused)


def _is_clean(sample: Sample) -> bool:
    return sample.name.rpartition("/")[2].startswith(_CLEAN)


def _read(edge: int) -> tuple[list[Sample], list[Sample], tuple[Unused, ...]]:
    name = f"imagewoof2-{edge}"
    unpack(Remote(url=f"{_ADDRESS}/{name}.tgz"), data_root(), [name])
    root = data_root() / name
    samples, unused = read_image_files(train_and_val(root, tuple(_BREEDS)), tuple(_BREEDS), root)
    return samples["train"], samples["test"], unused


def _dataset(
    name: str,
    caution: str,
    edge: int,
    train: Sequence[Sample],
    test: Sequence[Sample],
    seed: int,
    held_out: str,
    unused: tuple[Unused, ...],
) -> Dataset:
    location = name if edge == 320 else f"{name}_{edge}"
    labels, samples = tuple(_BREEDS.values()), {"train": train, "test": test}
    found = official_dataset(location, labels, samples, seed=seed, held_out=held_out, unused=unused)
    return dataclasses.replace(found, name=f"{name} ({caution}, {edge} px)")
