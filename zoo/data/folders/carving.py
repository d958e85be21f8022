"""Validation and test images taken out of a user's folder: each image's side depends on its own bytes.

An image is held out where a number made of its digest and the seed lies below a share of all numbers, so a file that is
added or taken away leaves the others where they are. Only where a class would have no image on one side, one moves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from zoo.base.errors import DataError
from zoo.data.dataset import SPLITS, Sample

__all__ = ["MOST_CARVED", "carve", "share_of"]

MOST_CARVED = 10_000
"""Images of a carved split: the 95 % interval of an accuracy of 80 % is then 1.6 points wide."""


def share_of(share: float, images: int) -> float:
    """A share of so many images, or the smaller one that is MOST_CARVED of them."""
    return min(share, MOST_CARVED / images) if images else share


def carve(samples: Sequence[Sample], shares: Mapping[str, float], *, seed: int) -> dict[str, list[Sample]]:
    """Take validation, or validation and test, out of `samples`; the rest is for training.

    Copies of one image (same digest) stay together. In each class the first image is for training, the second for
    validation and the third for the test, if the numbers say otherwise for all of them.

    Args:
        samples: of which no image has two labels.
        shares: `validation` and perhaps `test` -> about the share of each class that it gets.
        seed: another one makes other splits.

    Returns:
        The splits that are named, and `train`, each in the order of `samples`.

    Raises:
        DataError: nothing is left for one of them.
    """
    classes: dict[int, dict[str, float]] = {}
    for sample in samples:
        numbers = classes.setdefault(sample.label, {})
        if sample.digest not in numbers:
            numbers[sample.digest] = _number(sample.digest, seed)
    place: dict[str, str] = {}
    for numbers in classes.values():
        place |= _sides(numbers, shares)
    parts: dict[str, list[Sample]] = {split: [] for split in SPLITS if split == "train" or split in shares}
    for sample in samples:
        parts[place[sample.digest]].append(sample)
    for split, members in parts.items():
        if not members:
            raise DataError(
                f"too few images to take {' and '.join(shares)} out of {len(samples)}: none is left for {split}; add "
                f"images, or make a folder for {split} yourself"
            )
    return parts


def _number(digest: str, seed: int) -> float:
    """In [0, 1)."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{digest}".encode()).digest()[:6], "big") / 2**48


def _sides(numbers: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, str]:
    """The split of each digest of one class.

    Test from the lower end of the numbers, validation from the upper one, so that shares which shrink as images are
    added move none from the one to the other.
    """
    test, validation = shares.get("test", 0.0), 1 - shares["validation"]
    order = sorted(numbers, key=lambda digest: (numbers[digest], digest))
    low = sum(number < test for number in numbers.values())
    high = sum(number >= validation for number in numbers.values())
    # In a class of few images, each side has one before another has two.
    low = max(low, 1) if "test" in shares and len(order) >= 3 else min(low, max(0, len(order) - 2))
    high = max(high, 1) if len(order) >= 2 else 0
    while low + high >= len(order) > 0:
        low, high = (low - 1, high) if low > high else (low, high - 1)
    first = len(order) - high
    return {
        digest: "test" if index < low else "validation" if index >= first else "train"
        for index, digest in enumerate(order)
    }
