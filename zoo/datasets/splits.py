"""Seeded, stratified splits."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Sequence

from zoo.datasets.base import Sample
from zoo.errors import DataError

__all__ = ["stratified"]


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
    classes: dict[int, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        classes[sample.label][sample.digest].append(sample)
    parts: list[list[Sample]] = [[] for _ in fractions]
    for label, copies in sorted(classes.items()):
        if len(copies) < len(fractions):
            example = next(iter(copies.values()))[0]
            raise DataError(
                f"the class of {example.name} has {len(copies)} distinct image(s), "
                f"too few to split into {len(fractions)} parts"
            )
        digests = sorted(copies)
        random.Random(f"{seed}:{label}").shuffle(digests)
        for part, chunk in zip(parts, _cut(digests, fractions), strict=True):
            part.extend(sample for digest in chunk for sample in copies[digest])
    return [sorted(part, key=lambda sample: (sample.label, sample.name)) for part in parts]


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
