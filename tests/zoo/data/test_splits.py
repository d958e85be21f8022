"""Properties of the seeded splits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zoo.factories import make_dataset
from zoo.base.errors import DataError, UsageError
from zoo.data.dataset import SPLITS, Dataset, Sample
from zoo.data.splits import Thin, few_labels, joined, some, stratified, thin, without_leaks

FRACTIONS = [(0.7, 0.15, 0.15), (0.6, 0.2, 0.2), (0.8, 0.2), (0.34, 0.33, 0.33)]


def _samples(sizes: list[int], copies: int = 1) -> list[Sample]:
    return [
        Sample(name=f"{label}/{index}.{copy}", label=label, digest=f"{label}:{index}", source=b"")
        for label, size in enumerate(sizes)
        for index in range(size)
        for copy in range(copies)
    ]


SIZES = st.lists(st.integers(3, 40), min_size=1, max_size=4)


@given(SIZES, st.sampled_from(FRACTIONS), st.integers(0, 9), st.integers(1, 3), st.randoms())
def test_disjoint_complete_deterministic_and_copies_stay_together(sizes, fractions, seed, copies, order):
    samples = _samples(sizes, copies)
    parts = stratified(samples, fractions, seed=seed)
    names = [sample.name for part in parts for sample in part]
    assert sorted(names) == sorted(sample.name for sample in samples)
    digests = [{sample.digest for sample in part} for part in parts]
    assert sum(map(len, digests)) == len(set().union(*digests)) == sum(sizes)
    shuffled = list(samples)
    order.shuffle(shuffled)
    assert stratified(shuffled, fractions, seed=seed) == parts
    assert all(part == sorted(part, key=lambda s: (s.label, s.name)) for part in parts)


@given(SIZES, st.sampled_from(FRACTIONS), st.integers(0, 9))
def test_stratified_to_within_one_and_never_empty(sizes, fractions, seed):
    parts = stratified(_samples(sizes), fractions, seed=seed)
    for label, size in enumerate(sizes):
        counts = [sum(sample.label == label for sample in part) for part in parts]
        assert min(counts) >= 1
        if size * min(fractions) >= 1:
            assert all(abs(count - size * share) <= 1 for count, share in zip(counts, fractions, strict=True))


@pytest.mark.parametrize(
    ("size", "counts"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1, 1]), (10, [7, 1, 2]), (100, [70, 15, 15])]
)
def test_sizes(size, counts):
    assert [len(part) for part in stratified(_samples([size]), (0.7, 0.15, 0.15), seed=0)] == counts


def test_a_new_class_leaves_the_others_as_they_were():
    two, three = (stratified(_samples([20] * count), (0.8, 0.2), seed=1) for count in (2, 3))
    assert [[s for s in part if s.label < 2] for part in three] == two


def test_seeds_differ():
    parts = {tuple(s.name for s in stratified(_samples([20]), (0.8, 0.2), seed=seed)[1]) for seed in range(5)}
    assert len(parts) == 5


def test_the_split_of_a_seed_is_the_same_everywhere():
    # Python's random.Random(str).shuffle; should it ever change, every seeded split changes with it.
    assert [s.name for s in stratified(_samples([10]), (0.8, 0.2), seed=0)[1]] == ["0/1.0", "0/9.0"]


def test_too_few_images():
    with pytest.raises(DataError, match=r"class of 1/0\.0 has 2 distinct image\(s\), too few to split into 3"):
        stratified(_samples([3, 2], copies=2), (0.7, 0.15, 0.15), seed=0)


@pytest.mark.parametrize("fractions", [(0.5, 0.4), (1.5, -0.5), (1.0, 0.0)])
def test_wrong_fractions(fractions):
    with pytest.raises(ValueError, match="fractions must be positive and sum to 1"):
        stratified(_samples([9]), fractions, seed=0)


def test_labels_may_have_gaps():
    samples = [sample for sample in _samples([5, 5, 5]) if sample.label != 1]
    assert Counter(s.label for part in stratified(samples, (0.5, 0.5), seed=0) for s in part) == {0: 5, 2: 5}


def _dataset(sizes: list[int], copies: int = 1) -> Dataset:
    splits = {split: [replace(s, name=f"{split}/{s.name}") for s in _samples(sizes, copies)] for split in SPLITS}
    for split in ("validation", "test"):
        splits[split] = [replace(sample, digest=f"{split}:{sample.digest}") for sample in splits[split]]
    labels = tuple(f"class {label}" for label in range(len(sizes)))
    groups = {"even": labels[::2], "odd": labels[1::2]}
    fields = {"labels": labels, "groups": groups, "rule": "made up", "colour": "L", "photographs": False}
    return Dataset(name="tiny", splits=splits, **fields)


MANY = st.lists(st.integers(1, 60), min_size=1, max_size=4)
SHARES = st.floats(0.005, 1)


def _digests(samples) -> set[str]:
    return {sample.digest for sample in samples}


@given(MANY, st.lists(SHARES, min_size=2, max_size=4), st.integers(0, 9), st.integers(1, 3), st.randoms())
def test_fewer_labels_are_nested_stratified_and_keep_copies_together(sizes, shares, seed, copies, order):
    dataset = _dataset(sizes, copies)
    train = dataset.splits["train"]
    smaller: set[str] = set()
    for share in sorted(shares):
        found = few_labels(dataset, share, seed=seed)
        labelled = found.splits["train"]
        assert sorted(s.name for s in (*labelled, *found.unlabelled)) == sorted(s.name for s in train)
        assert smaller <= _digests(labelled) and not _digests(labelled) & _digests(found.unlabelled)
        counts = Counter(sample.label for sample in labelled)
        assert counts == {label: copies * max(1, round(share * size)) for label, size in enumerate(sizes)}
        assert [found.splits[split] for split in SPLITS[1:]] == [dataset.splits[split] for split in SPLITS[1:]]
        smaller = _digests(labelled)
    shuffled = list(train)
    order.shuffle(shuffled)
    again = few_labels(replace(dataset, splits=dataset.splits | {"train": shuffled}), share, seed=seed)
    assert _digests(again.splits["train"]) == smaller


@given(MANY, st.floats(0.01, 0.5), st.integers(0, 9), st.integers(1, 3))
def test_thinning_is_of_the_named_classes_of_train_only(sizes, keep, seed, copies):
    dataset = _dataset(sizes, copies)
    less, more = (thin(dataset, Thin(classes=("even",), keep=share), seed=seed) for share in (keep, 2 * keep))
    counts = Counter(sample.label for sample in less.splits["train"])
    shares = {label: 1 if label % 2 else keep for label in range(len(sizes))}
    assert counts == {label: copies * max(1, round(shares[label] * size)) for label, size in enumerate(sizes)}
    assert _digests(less.splits["train"]) <= _digests(more.splits["train"])
    assert [less.splits[split] for split in SPLITS[1:]] == [dataset.splits[split] for split in SPLITS[1:]]
    assert [s for s in dataset.splits["train"] if s in less.splits["train"]] == less.splits["train"]


def test_classes_and_groups_together_are_thinned_once():
    found = thin(_dataset([20, 20, 20, 20]), Thin(classes=("even", "class 0", "class 3"), keep=0.25), seed=1)
    assert Counter(s.label for s in found.splits["train"]) == {0: 5, 1: 20, 2: 5, 3: 5}
    assert found.rule == "made up; 0.25 of the train images of even, class 0, class 3 kept, seed 1"


def test_an_unknown_class_has_close_matches():
    with pytest.raises(UsageError, match="unknown class or group of tiny 'class1'; did you mean class 1"):
        thin(_dataset([3, 3]), Thin(classes=("class1",), keep=0.5), seed=0)


@pytest.mark.parametrize(
    ("classes", "keep", "message"),
    [((), 0.5, "thin.classes: expected at least one"), (("a",), 0, "thin.keep: expected"), (("a",), 1.5, "got 1.5")],
)
def test_wrong_thinning(classes, keep, message):
    with pytest.raises(UsageError, match=message):
        Thin(classes=classes, keep=keep)


@pytest.mark.parametrize("share", [0, -1, 1.01, float("nan")])
def test_wrong_share_of_labels(share):
    with pytest.raises(UsageError, match="labels: expected a share above 0 and at most 1, got"):
        few_labels(_dataset([3, 3]), share, seed=0)


def test_one_percent_of_few_images_is_one_of_each_class():
    found = few_labels(_dataset([40, 10, 1]), 0.01, seed=0)
    assert [sample.label for sample in found.splits["train"]] == [0, 1, 2]
    assert len(found.unlabelled) == 48
    assert found.rule == "made up; labels of 0.01 of train kept, stratified, seed 0"


def test_copies_with_contradicting_labels_are_labelled_together():
    dataset = _dataset([30, 30])
    train = dataset.splits["train"]
    other = [replace(sample, name=f"again {sample.name}", label=1 - sample.label) for sample in train]
    found = few_labels(replace(dataset, splits=dataset.splits | {"train": [*train, *other]}), 0.1, seed=0)
    assert not _digests(found.splits["train"]) & _digests(found.unlabelled)
    assert len(found.splits["train"]) + len(found.unlabelled) == 120


def test_the_labels_and_images_of_a_seed_are_the_same_everywhere():
    dataset = _dataset([10])
    assert [s.name for s in few_labels(dataset, 0.2, seed=0).splits["train"]] == ["train/0/3.0", "train/0/8.0"]
    kept = thin(dataset, Thin(classes=("class 0",), keep=0.2), seed=0).splits["train"]
    assert [s.name for s in kept] == ["train/0/0.0", "train/0/2.0"]


def test_shared_images_stay_in_the_test_and_then_in_validation():
    a, b, c, d, e = _samples([5])
    shared = {"train": [a, b, c, e], "validation": [b, d, e], "test": [c, d, c]}
    splits, clause = without_leaks(shared)
    assert splits == {"train": [a], "validation": [b, e], "test": [c, d, c]}
    assert clause == (
        "; 3 image(s) dropped from train, copies of images of validation or test"
        "; 1 image(s) dropped from validation, copies of images of test"
    )
    assert without_leaks(splits) == (splits, "")


@pytest.mark.parametrize("most", [1, 30, 100])
def test_some_of_each_class_the_same_ones_each_time(most):
    samples = _samples([100, 10, 1], copies=2)
    found = some(samples, most)
    counts = Counter(sample.label for sample in found)
    assert set(counts) == {0, 1, 2} and some(list(reversed(samples)), most)[::-1] == found
    assert counts[0] == pytest.approx(200 * most / len(samples), abs=4)
    assert some(samples, 222) is samples


def test_joined_validation_images_are_training_images_and_no_split_any_more():
    dataset = make_dataset(6)
    found = joined(dataset)
    assert list(found.splits) == ["train", "test"]
    assert list(found.splits["train"]) == [*dataset.splits["train"], *dataset.splits["validation"]]
    assert found.splits["test"] == dataset.splits["test"]
    assert found.describe()["n"] == {"train": 12, "test": 6}
    assert found.rule == "made up; 6 images of validation joined the 6 of train"
    assert found.joined_from == dataset.held_out
    assert len({dataset.digest, found.digest}) == len({dataset.held_out, found.held_out}) == 2
    assert found.splits.get("validation", ()) == ()
    with pytest.raises(DataError, match=r"tiny: expected images of the split 'validation', .* on --split test"):
        found.splits["validation"]
