"""Ten kingdoms and classes of living things from iNaturalist: `nature_12K`, of the course CS6910 (DA6401), IIT Madras.

About 10,000 images in `train` and 2,000 in `val`, which is the test here, as in the course. The zip is the one that the
course and Weights & Biases hand out. No checksum is published, so the first download is trusted: see
zoo.data.sources.download.
"""

from __future__ import annotations

from zoo.data.dataset import Dataset
from zoo.data.folders.image_files import read_image_files
from zoo.data.sources.download import Remote, data_root, unpack
from zoo.data.sources.official import official_dataset, train_and_val

__all__ = ["inaturalist10"]

_URL = "https://storage.googleapis.com/wandb_datasets/nature_12K.zip"
_FOLDER = "inaturalist_12K"
_CLASSES = (
    *("Amphibia", "Animalia", "Arachnida", "Aves", "Fungi"),
    *("Insecta", "Mammalia", "Mollusca", "Plantae", "Reptilia"),
)


def inaturalist10(seed: int = 0) -> Dataset:
    """Amphibians, birds, fungi, insects, plants and five more, in photographs of any size.

    Args:
        seed: of the validation images, which are carved out of `train`.

    Raises:
        DataError: it cannot be downloaded, or the files are not as published.
    """
    unpack(Remote(url=_URL), data_root(), [_FOLDER])
    root = data_root() / _FOLDER
    samples, unused = read_image_files(train_and_val(root, _CLASSES), _CLASSES, root)
    held_out = "the folder `val`"
    return official_dataset("inaturalist10", _CLASSES, samples, seed=seed, held_out=held_out, unused=unused)
