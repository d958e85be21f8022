"""Oxford 102 Flowers: official training, validation and test splits.

Nilsback & Zisserman 2008, Automated Flower Classification over a Large Number of Classes;
https://www.robots.ox.ac.uk/~vgg/data/flowers/102/
1,020 images (10 of each class) for training, 1,020 for validation, 6,149 for the test.
"""

from __future__ import annotations

from zoo.data.dataset import Dataset
from zoo.data.folders.image_files import ImageFile, read_image_files
from zoo.data.sources.download import Remote, data_root, fetch, unpack
from zoo.data.sources.official import official_dataset

__all__ = ["flowers102"]


def flowers102(seed: int = 0) -> Dataset:
    """102 kinds of flowers.

    Args:
        seed: not used: all three splits are official.

    Raises:
        DataError: it cannot be downloaded, or the files are not as published.
    """
    from torchvision.datasets import Flowers102

    root = data_root()
    folder = root / "flowers-102"
    remotes = {
        kind: Remote(url=f"{Flowers102._download_url_prefix}{name}", md5=md5)
        for kind, (name, md5) in Flowers102._file_dict.items()
    }
    for kind in ("label", "setid"):
        fetch(remotes[kind], folder)
    unpack(remotes["image"], folder, ["jpg"])
    labels = tuple(Flowers102.classes)
    files = {}
    for split, official in (("train", "train"), ("validation", "val"), ("test", "test")):
        part = Flowers102(str(root), split=official)
        files[split] = [
            ImageFile(path, path.name, labels[label])
            for path, label in zip(part._image_files, part._labels, strict=True)
        ]
    samples, unused = read_image_files(files, labels, folder)
    return official_dataset("flowers102", labels, samples, seed=seed, unused=unused)
