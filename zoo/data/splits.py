"""Seeded, stratified splits, and seeded ways of leaving training images or their labels out."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from zoo.base.errors import DataError, UsageError, unknown_name
from zoo.data.dataset import SPLITS, Dataset, Sample

__all__ = ["CARVED", "Thin", "few_labels", "joined", "some", "stratified", "thin", "without_leaks"]

CARVED = 0.2
"""The share of `train` that becomes validation where a data set has no split of that purpose."""


@dataclass(frozen=True, kw_only=True)
class Thin:
    """Keep only a part of the training images of some classes, to make an imbalance on purpose."""

    classes: tuple[str, ...]
    """Labels, or names of groups of labels (`cats` of oxford_pet)."""
    keep: float
    """The share of each class's distinct training images that stays, above 0 and at most 1; at least one stays."""

    def __post_init__(self) -> None:
        if not self.classes:
            raise UsageError("thin.classes: expected at least one class, got none; name one, or leave `thin` out")
        if not 0 < self.keep <= 1:
            raise UsageError(f"thin.keep: expected a share above 0 and at most 1, got {self.keep}; 0.2 keeps 20 %")


def stratified(samples: Sequence[Sample], fractions: Sequence[float], *, seed: int) -> list[list[Sample]]:
    """Split each class by `fractions`, which sum to 1, reproducibly.

    Copies of one image (same digest) stay together, so a split made here never leaks. The order of `samples` does
    not matter, only their digests and labels do. Adding an image or a class makes other splits.

    Returns:
        One list per fraction, each ordered by label and name.

    Raises:
        DataError: a class has fewer distinct images than there are parts.
    """
    if abs(sum(fractions) - 1) > 1e-9 or min(fractions) <= 0:
        raise ValueError(f"fractions must be positive and sum to 1, got {list(fractions)}")
    parts: list[list[Sample]] = [[] for _ in fractions]
    for label, copies in _by_class(samples):
        if len(copies) < len(fractions):
            example = next(iter(copies.values()))[0]
            raise DataError(
                f"the class of {example.name} has {len(copies)} distinct image(s), "
                f"too few to split into {len(fractions)} parts"
            )
        for part, chunk in zip(parts, _cut(_shuffled(copies, f"{seed}:{label}"), fractions), strict=True):
            part.extend(sample for digest in chunk for sample in copies[digest])
    return [sorted(part, key=lambda sample: (sample.label, sample.name)) for part in parts]


def without_leaks(splits: Mapping[str, Sequence[Sample]]) -> tuple[dict[str, list[Sample]], str]:
    """Official splits that share an image: the copy stays in test, else in validation, and is dropped elsewhere.

    Returns:
        The three splits, and a clause for the rule that counts what was dropped ("" if nothing was).
    """
    taken: set[str] = set()
    kept: dict[str, list[Sample]] = {}
    clauses = []
    for split in reversed(SPLITS):
        kept[split] = [sample for sample in splits[split] if sample.digest not in taken]
        if count := len(splits[split]) - len(kept[split]):
            clauses.append(f"; {count} image(s) dropped from {split}, copies of images of {_held_out(split)}")
        taken |= {sample.digest for sample in kept[split]}
    return {split: kept[split] for split in SPLITS}, "".join(reversed(clauses))


def _held_out(split: str) -> str:
    return " or ".join(SPLITS[SPLITS.index(split) + 1 :])


def thin(dataset: Dataset, config: Thin, *, seed: int) -> Dataset:
    """Keep a part of the training images of some classes; validation and test stay as they are.

    What a smaller share keeps, a larger one with the same seed keeps too.

    Raises:
        UsageError: a class that is neither a label nor a group of the data set; lists close matches.
    """
    chosen: set[int] = set()
    for name in config.classes:
        if name not in dataset.labels and name not in dataset.groups:
            raise unknown_name(f"class or group of {dataset.name}", name, [*dataset.labels, *dataset.groups])
        members = (name,) if name in dataset.labels else dataset.groups[name]
        chosen |= {dataset.labels.index(member) for member in members}
    train = dataset.splits["train"]
    kept = {
        (label, digest)
        for label, copies in _by_class(train)
        if label in chosen
        for digest in _first(copies, config.keep, f"thin:{seed}:{label}")
    }
    thinned = [sample for sample in train if sample.label not in chosen or (sample.label, sample.digest) in kept]
    return dataclasses.replace(
        dataset,
        splits={**dataset.splits, "train": thinned},
        rule=f"{dataset.rule}; {config.keep:.4g} of the train images of {', '.join(config.classes)} kept, seed {seed}",
    )


def few_labels(dataset: Dataset, fraction: float, *, seed: int) -> Dataset:
    """Keep the labels of a fraction of the training images; the others move to `unlabelled`.

    Stratified (at least one distinct image of each class), and nested: with the same seed, what 1 % labels, 10 %
    labels too. Copies of one image are labelled together or not at all.

    Args:
        dataset: all of its training images are labelled.
        fraction: above 0 and at most 1.
        seed: of the choice.

    Raises:
        UsageError: the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise UsageError(
            f"labels: expected a share above 0 and at most 1, got {fraction}; 0.1 keeps 10 % of the labels"
        )
    train = dataset.splits["train"]
    chosen = {
        digest for label, copies in _by_class(train) for digest in _first(copies, fraction, f"labels:{seed}:{label}")
    }
    labelled = [sample for sample in train if sample.digest in chosen]
    return dataclasses.replace(
        dataset,
        splits={**dataset.splits, "train": labelled},
        unlabelled=tuple(sample for sample in train if sample.digest not in chosen),
        rule=f"{dataset.rule}; labels of {fraction:.4g} of train kept, stratified, seed {seed}",
    )


class _WithoutValidation(dict[str, Sequence[Sample]]):
    """Splits of which asking for validation images is answered with a sentence, whatever asks."""

    def __init__(self, splits: Mapping[str, Sequence[Sample]], name: str) -> None:
        super().__init__(splits)
        self._name = name

    def __missing__(self, split: str) -> Sequence[Sample]:
        raise DataError(
            f"{self._name}: expected images of the split {split!r}, but a refit was trained on them, so they tell "
            "nothing about it; measure it on --split test, and take choices on the artefact that was refitted"
        )


def joined(dataset: Dataset) -> Dataset:
    """The data set with its validation images behind the training images, for a refit.

    There is no split `validation` then: asking for it raises DataError.
    """
    train, validation = dataset.splits["train"], dataset.splits["validation"]
    splits = {"train": [*train, *validation], "test": dataset.splits["test"]}
    return dataclasses.replace(
        dataset,
        splits=_WithoutValidation(splits, dataset.name),
        rule=f"{dataset.rule}; {len(validation)} images of validation joined the {len(train)} of train",
        joined_from=dataset.held_out,
    )


def some(samples: Sequence[Sample], most: int) -> Sequence[Sample]:
    """About `most` of the images, the same ones each time: an equal share of each class, at least one; all if fewer."""
    if len(samples) <= most:
        return samples
    chosen = {
        digest
        for label, copies in _by_class(samples)
        for digest in _first(copies, most / len(samples), f"some:{label}")
    }
    return [sample for sample in samples if sample.digest in chosen]


def _by_class(samples: Iterable[Sample]) -> list[tuple[int, dict[str, list[Sample]]]]:
    """Label and its images, copies together: digest -> samples; ordered by label."""
    classes: dict[int, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        classes[sample.label][sample.digest].append(sample)
    return sorted(classes.items())


def _shuffled(digests: Iterable[str], key: str) -> list[str]:
    ordered = sorted(digests)
    random.Random(key).shuffle(ordered)
    return ordered


def _first(digests: Iterable[str], share: float, key: str) -> list[str]:
    """A seeded choice of a share of the digests, at least one; a smaller share is the beginning of a larger one."""
    order = _shuffled(digests, key)
    return order[: max(1, round(share * len(order)))]


def _cut(items: list[str], fractions: Sequence[float]) -> list[list[str]]:
    """Consecutive pieces with sizes as near to the fractions as whole numbers come, none of them empty."""
    bounds = [round(sum(fractions[: index + 1]) * len(items)) for index in range(len(fractions))]
    for index in range(len(bounds)):
        bounds[index] = max(bounds[index], (bounds[index - 1] if index else 0) + 1)
    bounds[-1] = len(items)
    for index in range(len(bounds) - 1, 0, -1):
        bounds[index - 1] = min(bounds[index - 1], bounds[index] - 1)
    edges = [0, *bounds]
    return [items[begin:end] for begin, end in itertools.pairwise(edges)]
