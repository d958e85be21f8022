"""From labelled image files in splits, wherever they were named, to a data set whose splits share no image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from zoo.base.errors import DataError
from zoo.base.progress import note
from zoo.data.dataset import SPLITS, Dataset, Sample, check_disjoint
from zoo.data.folders.carving import carve, share_of
from zoo.data.folders.image_files import ImageFile, verified_samples
from zoo.data.folders.unused import Unused, check_lost, tell
from zoo.data.splits import CARVED, without_leaks

__all__ = ["assemble"]

_HELD_OUT = 0.15
"""The share of each of validation and test where nothing says which image is what."""


def assemble(
    groups: Mapping[str, Sequence[ImageFile]],
    *,
    root: Path,
    name: str,
    location: Path,
    seed: int,
    unused: Iterable[Unused] = (),
    white: float | None = None,
) -> Dataset:
    """Decode the files, drop what is in two places, and make the splits that are not there.

    Args:
        groups: files of `train` and perhaps `validation` and `test`, or of `all`.
        root: names of files are relative to it.
        name: of the data set.
        location: what opens it again.
        seed: of the splits that are made here.
        unused: what was left out before.
        white: see zoo.data.folders.reading.Reading.range.

    Raises:
        DataError: fewer than two classes, a class without training images, or too many images that cannot be used.
    """
    where = str(location)
    groups = {split: groups[split] for split in ("all", *SPLITS) if split in groups}
    labels = tuple(sorted({file.label for files in groups.values() for file in files}))
    samples, unread = verified_samples(groups, labels, root, white=white)
    left_out = [*unused, *unread]
    samples = _without_contradictions(samples, labels, left_out)
    samples = _without_copies(samples, labels, left_out)
    check_lost(left_out, sum(map(len, samples.values())), where)
    tell(left_out, where)
    splits, rule = _splits(samples, seed, where)
    check_disjoint(splits)
    _check_classes(splits, labels, where)
    return Dataset(
        name=name,
        labels=labels,
        splits=splits,
        rule=rule,
        colour="RGB",
        photographs=True,
        location=str(location.resolve()),
        unused=tuple(left_out),
    )


def _without_contradictions(
    samples: Mapping[str, list[Sample]], labels: Sequence[str], unused: list[Unused]
) -> dict[str, list[Sample]]:
    """Images that have one label: of others, no copy is used."""
    seen: dict[str, int] = {}
    several: set[str] = set()
    for members in samples.values():
        several |= {sample.digest for sample in members if seen.setdefault(sample.digest, sample.label) != sample.label}
    return _drop(samples, several, "the same image under several labels", labels, unused)


def _without_copies(
    samples: Mapping[str, list[Sample]], labels: Sequence[str], unused: list[Unused]
) -> dict[str, list[Sample]]:
    """Splits that share no image: a copy stays in test, else in validation."""
    if len(samples) == 1:
        return dict(samples)
    kept, _ = without_leaks({split: samples.get(split, []) for split in SPLITS})
    for split, members in samples.items():
        here = {sample.digest for sample in kept[split]}
        reason = f"in {split}, copies of images of {' or '.join(SPLITS[SPLITS.index(split) + 1 :])}"
        unused += [Unused(sample.name, reason, labels[sample.label]) for sample in members if sample.digest not in here]
    return {split: kept[split] for split in samples}


def _drop(
    samples: Mapping[str, list[Sample]], digests: set[str], reason: str, labels: Sequence[str], unused: list[Unused]
) -> dict[str, list[Sample]]:
    if not digests:
        return dict(samples)
    gone = [sample for members in samples.values() for sample in members if sample.digest in digests]
    # Copies stand together, so that the list shows what contradicts what.
    gone.sort(key=lambda sample: sample.digest)
    unused += [Unused(sample.name, reason, labels[sample.label], f"SHA-256 {sample.digest[:12]}") for sample in gone]
    return {split: [sample for sample in members if sample.digest not in digests] for split, members in samples.items()}


def _splits(samples: Mapping[str, list[Sample]], seed: int, where: str) -> tuple[dict[str, list[Sample]], str]:
    try:
        if len(samples) == 1:
            ((split, members),) = samples.items()
            share = share_of(_HELD_OUT, len(members))
            rule = f"validation and test are {share:.3g} of {split} each, by digest, seed {seed}"
            return carve(members, {"validation": share, "test": share}, seed=seed), rule
        if len(samples) == 3:
            return dict(samples), "as they are given"
        # The one held-out split is the final test: choices must not be made on it.
        held_out = next(split for split in samples if split != "train")
        share = share_of(CARVED, len(samples["train"]))
        parts = carve(samples["train"], {"validation": share}, seed=seed)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    rule = f"test is the given {held_out}; validation is {share:.3g} of train, by digest, seed {seed}"
    return {**parts, "test": samples[held_out]}, rule


def _check_classes(splits: Mapping[str, Sequence[Sample]], labels: Sequence[str], where: str) -> None:
    for split in SPLITS:
        counts = Counter(sample.label for sample in splits[split])
        if not counts:
            raise DataError(f"{where}: no image is left in {split}; add images to it, or leave it out to have it made")
        missing = [label for number, label in enumerate(labels) if not counts[number]]
        if missing and split == "train":
            raise DataError(
                f"{where}: the class {missing[0]!r} has no images in train that can be used, so it cannot be learned "
                f"({len(missing)} such class(es)); add some, or take the class out of every split"
            )
        if missing:
            shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            note(
                f"{where}: {len(missing)} of {len(labels)} classes without images in {split}: {shown}; measured without"
            )
