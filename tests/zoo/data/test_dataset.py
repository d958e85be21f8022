"""Samples, data sets, and what is checked of their splits."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from tests.zoo.factories import make_dataset, make_samples
from zoo.base.errors import DataError
from zoo.data.dataset import SPLITS, Sample, check_disjoint, limit


def test_a_sample_reads_its_bytes_or_its_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"content")
    sample = Sample(name="a", label=0, digest="", source=path)
    assert sample.read() == b"content" == dataclasses.replace(sample, source=b"content").read()
    assert "source" not in repr(sample)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.png: cannot be read any more"):
        sample.read()


def test_digest_depends_on_labels_splits_and_images():
    dataset = make_dataset()
    swapped = dataset.splits | {"train": dataset.splits["test"], "test": dataset.splits["train"]}
    others = [
        dataclasses.replace(dataset, labels=("x", "y", "z")),
        dataclasses.replace(dataset, splits=swapped),
        dataclasses.replace(dataset, splits=dataset.splits | {"test": dataset.splits["test"][1:]}),
        dataclasses.replace(dataset, unlabelled=make_samples(2)),
        dataclasses.replace(dataset, unlabelled=make_samples(3)),
    ]
    assert len({dataset.digest, *(other.digest for other in others)}) == 6
    assert dataset.digest == make_dataset().digest


def test_what_the_lineage_records():
    dataset = make_dataset(12)
    assert dataset.describe() == {
        "name": "tiny",
        "digest": dataset.digest,
        "held_out": dataset.held_out,
        "rule": "made up",
        "n": {"train": 12, "validation": 12, "test": 12},
        "skipped": 0,
    }
    part = dataclasses.replace(dataset, unlabelled=make_samples(5, seed=9))
    assert part.describe()["n"] == {"train": 12, "validation": 12, "test": 12, "unlabelled": 5}


def test_what_is_held_out_does_not_depend_on_the_training_images():
    dataset = make_dataset()
    splits = dataset.splits
    fewer = dataclasses.replace(dataset, splits=splits | {"train": splits["train"][:3]}, unlabelled=make_samples(2))
    turned = dataclasses.replace(dataset, splits=splits | {"test": splits["test"][::-1]})
    assert fewer.held_out == turned.held_out == dataset.held_out
    less = dataclasses.replace(dataset, splits=splits | {"test": splits["test"][1:]})
    other = dataclasses.replace(dataset, splits=splits | {"validation": splits["test"], "test": splits["validation"]})
    assert len({dataset.held_out, less.held_out, other.held_out}) == 3


def test_the_labels_that_were_set_aside_do_not_matter():
    samples = make_samples(4)
    relabelled = [dataclasses.replace(sample, label=2) for sample in samples]
    one, other = (dataclasses.replace(make_dataset(), unlabelled=found) for found in (samples, relabelled))
    assert one.digest == other.digest


def test_one_image_in_two_splits_names_both_files():
    splits = {"train": make_samples(4, prefix="train/"), "test": make_samples(8, prefix="test/")}
    with pytest.raises(DataError) as caught:
        check_disjoint(splits)
    text = str(caught.value)
    assert text.startswith("4 image(s) are in two splits") and text.endswith("remove one of each pair")
    assert "train:train/0 = test:test/0" in text
    check_disjoint({"train": make_samples(4), "test": make_samples(4, seed=1)})


def test_copies_inside_one_split_are_fine():
    check_disjoint({"train": make_samples(4) * 2, "test": []})


@pytest.mark.parametrize(("per_split", "counts"), [(7, [3, 2, 2]), (3, [1, 1, 1]), (99, [4, 4, 4])])
def test_limit_keeps_classes_even(per_split, counts):
    limited = limit(make_dataset(12), per_split)
    assert tuple(limited.splits) == SPLITS
    for split in SPLITS:
        found = Counter(sample.label for sample in limited.splits[split])
        assert [found[label] for label in range(3)] == counts
    assert limited.rule == f"made up; the first {per_split} of each split, class by class"
