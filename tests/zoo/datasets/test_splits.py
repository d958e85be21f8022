"""Properties of the seeded splits."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.datasets.base import Sample
from zoo.datasets.splits import stratified
from zoo.errors import DataError

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
