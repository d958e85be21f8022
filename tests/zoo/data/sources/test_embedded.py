"""The data sets that come with packages."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from zoo.artefact.preprocess import decode
from zoo.data.dataset import SPLITS
from zoo.data.sources.embedded import digits, mnist5k


def test_mnist5k_is_3000_1000_1000_of_each_digit_alike():
    dataset = mnist5k()
    assert [len(dataset.splits[split]) for split in SPLITS] == [3000, 1000, 1000]
    for split, each in zip(SPLITS, (300, 100, 100), strict=True):
        # Copies of one image stay together, which may move a class by one.
        counts = Counter(sample.label for sample in dataset.splits[split])
        assert sorted(counts) == list(range(10))
        assert all(abs(count - each) <= 1 for count in counts.values())
    assert (dataset.labels, dataset.colour, dataset.photographs) == (tuple("0123456789"), "L", False)
    assert decode(dataset.splits["test"][0].read(), colour="L").size == (28, 28)
    # Of this very split: a change would make every published accuracy incomparable.
    assert dataset.digest == "8d7aee0d7b35ebbfd50c03d29295f575a110020f44520744e912e9b4c6c1c1f7"


def test_digits_are_split_70_15_15():
    dataset = digits()
    counts = [len(dataset.splits[split]) for split in SPLITS]
    assert sum(counts) == 1797
    assert counts == pytest.approx([0.7 * 1797, 0.15 * 1797, 0.15 * 1797], abs=10)
    pixels = np.stack([np.asarray(decode(sample.read(), colour="L")) for sample in dataset.splits["test"]])
    assert pixels.shape[1:] == (8, 8)
    # 17 levels, spread over 0..255
    assert sorted(set(pixels.ravel().tolist())) == [round(level * 255 / 16) for level in range(17)]
    assert digits().digest == dataset.digest
