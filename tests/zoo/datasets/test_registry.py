"""Data sets by name or folder."""

from __future__ import annotations

import pytest

from tests.zoo.factories import encode, picture
from zoo.datasets.registry import EMBEDDED, open_dataset
from zoo.errors import UsageError


def test_embedded_by_name_and_limited(output):
    assert list(EMBEDDED) == ["digits", "mnist5k"]
    dataset = open_dataset("digits", per_split=20)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == dict.fromkeys(dataset.splits, 20)
    assert open_dataset("digits", per_split=20) is dataset


def test_folder_by_path(output, tmp_path):
    for label in ("a", "b"):
        for index in range(4):
            path = tmp_path / "pets" / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(index + 10 * (label == "b"))))
    dataset = open_dataset(str(tmp_path / "pets"), seed=3)
    assert (dataset.name, dataset.labels) == ("pets", ("a", "b"))
    assert dataset.rule.endswith("seed 3")


def test_neither(output):
    with pytest.raises(UsageError, match=r"\(or folder that does not exist\) 'mnist'; did you mean mnist5k"):
        open_dataset("mnist")
