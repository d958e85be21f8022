"""What a data set is: labelled image files in three splits that share no image."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.artefact.samples import Depth
from zoo.base.errors import DataError
from zoo.data.folders.unused import Unused

__all__ = ["SPLITS", "Dataset", "Sample", "check_disjoint", "limit"]

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One labelled image; `source` is the encoded image itself or the path of its file."""

    name: str
    """Where it came from, for messages: a path relative to the data set, or an index."""
    label: int
    digest: str
    """SHA-256 of the encoded image."""
    source: Path | str | bytes = field(repr=False)
    """A million paths take a third of the memory as text."""
    depth: Depth | None = None
    """Its samples if they have more than 8 bits and the file does not say which value is white."""

    def read(self) -> bytes:
        """The encoded image.

        Raises:
            DataError: the file has gone since the data set was opened.
        """
        if isinstance(self.source, bytes):
            return self.source
        try:
            return Path(self.source).read_bytes()
        except OSError as error:
            raise DataError(f"{self.source}: cannot be read any more: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Labelled images in the splits `train`, `validation` and `test`; a refit has no `validation` (zoo.data.splits)."""

    name: str
    labels: tuple[str, ...]
    splits: Mapping[str, Sequence[Sample]]
    rule: str
    """How the splits were made, in words, with the seed where one was used."""
    colour: str
    """RGB or L: what the images are."""
    photographs: bool
    """Photographs are cropped and mirrored; small images are stretched to the input and never mirrored."""
    location: str | None = None
    """What to give `pocketzoo --data` to open it again."""
    unused: tuple[Unused, ...] = ()
    """Files that are no part of it, each with the reason."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names for several labels at once, like `cats`; accepted wherever classes are chosen."""
    unlabelled: Sequence[Sample] = ()
    """Training images whose labels were set aside: training must not use them, a report of pseudo-labels may."""
    joined_from: str | None = None
    """`held_out` of the data set whose validation images are training images here; see zoo.data.splits.joined."""

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over labels, splits and the digest of every image, of the unlabelled ones without their labels."""
        total = hashlib.sha256("\n".join(self.labels).encode())
        for split in SPLITS:
            for sample in self.splits.get(split, ()):
                total.update(f"{split}:{sample.label}:{sample.digest}\n".encode())
        for sample in self.unlabelled:
            total.update(f"unlabelled:{sample.digest}\n".encode())
        return total.hexdigest()

    @functools.cached_property
    def held_out(self) -> str:
        """SHA-256 over the digests of the validation and test images, whatever the training split is."""
        total = hashlib.sha256()
        for split in SPLITS[1:]:
            for digest in sorted(sample.digest for sample in self.splits.get(split, ())):
                total.update(f"{split}:{digest}\n".encode())
        return total.hexdigest()

    def describe(self) -> dict[str, object]:
        """What a lineage entry records about the data; `n` counts the unlabelled images where there are any."""
        counts = {split: len(samples) for split, samples in self.splits.items()}
        return {
            "name": self.name,
            "digest": self.digest,
            "held_out": self.held_out,
            "rule": self.rule,
            "n": counts | ({"unlabelled": len(self.unlabelled)} if self.unlabelled else {}),
            "skipped": sum(entry.lost for entry in self.unused),
        }


def check_disjoint(splits: Mapping[str, Sequence[Sample]]) -> None:
    """Check that no image (by digest) is in two splits.

    Raises:
        DataError: one is; names both files.
    """
    seen: dict[str, tuple[str, Sample]] = {}
    leaks: list[str] = []
    for split, samples in splits.items():
        for sample in samples:
            other_split, other = seen.setdefault(sample.digest, (split, sample))
            if other_split != split:
                leaks.append(f"{other_split}:{other.name} = {split}:{sample.name}")
    if leaks:
        raise DataError(
            f"{len(leaks)} image(s) are in two splits, so the test would not be one: "
            + "; ".join(leaks[:5])
            + (" ..." if len(leaks) > 5 else "")
            + "; remove one of each pair"
        )


def limit(dataset: Dataset, per_split: int) -> Dataset:
    """The data set with at most `per_split` images in each split, classes as even as they come.

    Unlabelled images stay: they are set aside after this (zoo.data.catalogue.open_dataset).
    """

    def first(samples: Sequence[Sample]) -> list[Sample]:
        rank: Counter[int] = Counter()
        ranked: list[tuple[int, int, Sample]] = []
        for position, sample in enumerate(samples):
            ranked.append((rank[sample.label], position, sample))
            rank[sample.label] += 1
        return [sample for _, _, sample in sorted(ranked, key=lambda entry: entry[:2])[:per_split]]

    return dataclasses.replace(
        dataset,
        splits={split: first(samples) for split, samples in dataset.splits.items()},
        rule=f"{dataset.rule}; the first {per_split} of each split, class by class",
    )
