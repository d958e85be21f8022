"""Ten kingdoms and classes of living things from iNaturalist: `nature_12K`, of the course CS6910 (DA6401), IIT Madras.

About 10,000 images in `train` and 2,000 in `val`, which is the test here, as in the course. The zip is the one that the
course and Weights & Biases hand out. No checksum is published, so the first download is trusted: see
zoo.datasets.download.
"""

from __future__ import annotations

from zoo.datasets.base import Dataset, check_disjoint
from zoo.datasets.download import Remote, data_root, unpack
from zoo.datasets.pictures import files_of_classes, read_pictures
from zoo.datasets.splits import carve
from zoo.errors import DataError

__all__ = ["inaturalist10"]

_URL = "https://storage.googleapis.com/wandb_datasets/nature_12K.zip"
_FOLDER = "inaturalist_12K"
_CLASSES = 10


def inaturalist10(seed: int = 0) -> Dataset:
    """Amphibians, birds, fungi, insects, plants and five more, in photographs of any size.

    Args:
        seed: of the validation images, which are carved out of `train`.

    Raises:
        DataError: it cannot be downloaded, or the files are not as published.
    """
    unpack(Remote(url=_URL), data_root(), [_FOLDER])
    root = data_root() / _FOLDER
    groups = {
        split: files_of_classes(root / split, root) if (root / split).is_dir() else [] for split in ("train", "val")
    }
    labels = tuple(sorted({file.label for file in groups["train"]}))
    if len(labels) != _CLASSES or {file.label for file in groups["val"]} != set(labels):
        raise DataError(
            f"{root}: expected the same {_CLASSES} class folders in train and val, found {list(labels)} in train"
        )
    samples, skipped = read_pictures(groups, labels, root)
    splits, rule = carve(samples["train"], samples["val"], seed=seed, held_out="the folder `val`")
    check_disjoint(splits)
    return Dataset(
        name="inaturalist10",
        labels=labels,
        splits=splits,
        rule=rule,
        colour="RGB",
        photographs=True,
        location="inaturalist10",
        skipped=skipped,
    )
