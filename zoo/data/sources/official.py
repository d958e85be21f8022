"""Data sets whose publisher says which images are the test, and perhaps which ones are for validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.base.errors import DataError
from zoo.data.dataset import Dataset, Sample
from zoo.data.folders.image_files import ImageFile, files_of_classes
from zoo.data.folders.unused import Unused
from zoo.data.splits import CARVED, stratified, without_leaks

__all__ = ["official_dataset", "train_and_val"]


def official_dataset(
    name: str,
    labels: Sequence[str],
    samples: Mapping[str, Sequence[Sample]],
    *,
    seed: int,
    held_out: str = "the official test split",
    colour: str = "RGB",
    photographs: bool = True,
    unused: tuple[Unused, ...] = (),
) -> Dataset:
    """A data set with its published test, exactly as it is; what else has an image of it is dropped.

    Args:
        name: also the location.
        labels: the classes.
        samples: `train`, `test` and perhaps `validation`, which otherwise is CARVED of `train`.
        seed: of the carving.
        held_out: what `test` is, in words, for the rule.
        colour: RGB or L.
        photographs: see Dataset.
        unused: files that cannot be read, each with the reason.

    Raises:
        DataError: a class has too few images to carve validation out of.
    """
    rule = "the official training, validation and test splits"
    if "validation" not in samples:
        rest, validation = stratified(samples["train"], (1 - CARVED, CARVED), seed=seed)
        samples = {"train": rest, "validation": validation, "test": samples["test"]}
        rule = f"test is {held_out}; validation is {CARVED:.0%} of train, stratified, seed {seed}"
    splits, dropped = without_leaks(samples)
    return Dataset(
        name=name,
        labels=tuple(labels),
        splits=splits,
        rule=f"{rule}{dropped}",
        colour=colour,
        photographs=photographs,
        location=name,
        unused=unused,
    )


def train_and_val(root: Path, classes: Sequence[str]) -> dict[str, list[ImageFile]]:
    """The images of `root/train/CLASS` as `train` and those of `root/val/CLASS` as `test`.

    Raises:
        DataError: one of both folders has other classes than `classes`.
    """
    files = {}
    for split, folder in (("train", root / "train"), ("test", root / "val")):
        files[split] = files_of_classes(folder, root) if folder.is_dir() else []
        if (found := {file.label for file in files[split]}) != set(classes):
            raise DataError(
                f"{folder}: expected images in the folders {sorted(classes)}, found {sorted(found)}; "
                "is it the right archive?"
            )
    return files
