"""Data sets with a published test: it stays as it is, whatever else is in the files."""

from __future__ import annotations

import re
from dataclasses import replace

from zoo.data.dataset import Sample, check_disjoint
from zoo.data.sources.official import official_dataset


def _samples(sizes: list[int]) -> list[Sample]:
    return [
        Sample(name=f"{label}/{index}", label=label, digest=f"{label}:{index}", source=b"")
        for label, size in enumerate(sizes)
        for index in range(size)
    ]


def test_carving_survives_contradicting_labels_and_leaks():
    train = _samples([20, 20])
    relabelled = [replace(sample, name=f"x{sample.name}", label=1 - sample.label) for sample in train]
    test = [replace(sample, name=f"test {sample.name}") for sample in train[:4]]
    samples = {"train": [*train, *relabelled], "test": test}
    dataset = official_dataset("mine", ("a", "b"), samples, seed=0, held_out="the rest", colour="L", photographs=False)
    check_disjoint(dataset.splits)
    assert dataset.splits["test"] == test
    assert dataset.rule.startswith("test is the rest; validation is 20% of train, stratified, seed 0; ")
    dropped = [int(number) for number in re.findall(r"(\d+) image\(s\) dropped", dataset.rule)]
    assert sum(map(len, dataset.splits.values())) == 84 - sum(dropped)
    assert (dataset.name, dataset.location, dataset.labels) == ("mine", "mine", ("a", "b"))
    assert (dataset.colour, dataset.photographs) == ("L", False)


def test_a_published_validation_split_is_kept():
    a, b, c, d = _samples([4])
    found = official_dataset("mine", ("a",), {"train": [a, b], "validation": [b, c], "test": [d]}, seed=3)
    assert found.splits == {"train": [a], "validation": [b, c], "test": [d]}
    assert found.rule == (
        "the official training, validation and test splits; "
        "1 image(s) dropped from train, copies of images of validation or test"
    )
