"""Your own images: a folder with one folder per class.

Three layouts are understood:

- `train/CLASS/...`, `val/CLASS/...`, `test/CLASS/...`: the splits as they are (`valid` and `validation` mean `val`);
- `train` and `val` only: `val` is the final test, and validation is carved out of `train`;
- `CLASS/...`: split 70/15/15.
"""

from __future__ import annotations

from pathlib import Path

from zoo.artefact.decode import SUFFIXES
from zoo.base.errors import DataError
from zoo.data.dataset import SPLITS, Dataset, Sample, check_disjoint
from zoo.data.image_files import ImageFile, class_folders, files_of_classes, is_hidden, read_image_files
from zoo.data.splits import CARVED, stratified

__all__ = ["open_folder"]

_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


def open_folder(root: Path, *, seed: int = 0) -> Dataset:
    """Open a folder of images; every file is decoded once, so that nothing fails in the middle of training.

    Args:
        root: the folder, in one of the layouts above.
        seed: of the splits made here.

    Raises:
        DataError: missing, an unknown layout, fewer than two classes, a class that is in one split only, too many
            unreadable files, or one image in two splits.
    """
    if not root.is_dir():
        raise DataError(f"no folder at {root}; expected train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg")
    found: dict[str, Path] = {}
    for entry in class_folders(root):
        if (split := _ALIASES.get(entry.name.lower())) and found.setdefault(split, entry) != entry:
            raise DataError(f"{root}: {found[split].name} and {entry.name} both mean {split}; keep one of them")
    if found and "train" not in found:
        raise DataError(f"{root}: has {', '.join(sorted(found))} but no `train` folder")
    groups = {split: files_of_classes(folder, root) for split, folder in found.items()}
    groups = groups or {"all": files_of_classes(root, root)}
    folders = [entry for folder in found.values() or [root] for entry in class_folders(folder)]
    labels = _labels(groups, folders, root)
    samples, skipped = read_image_files(groups, labels, root)
    splits, rule = _splits(samples, seed)
    check_disjoint(splits)
    if missing := {split for split, members in splits.items() if {m.label for m in members} != set(range(len(labels)))}:
        raise DataError(f"{root}: not every class has readable images in {', '.join(sorted(missing))}")
    return Dataset(
        name=root.resolve().name,
        labels=labels,
        splits=splits,
        rule=rule,
        colour="RGB",
        photographs=True,
        location=str(root.resolve()),
        skipped=skipped,
    )


def _labels(groups: dict[str, list[ImageFile]], folders: list[Path], root: Path) -> tuple[str, ...]:
    names = {split: {file.label for file in files} for split, files in groups.items()}
    labels = sorted(set().union(*names.values()))
    for folder in folders:
        visible = (path for path in folder.rglob("*") if path.is_file() and not is_hidden(path.relative_to(folder)))
        if folder.name not in labels and any(visible):
            raise DataError(
                f"{folder}: a class without images that can be read; expected files ending in "
                f"{', '.join(sorted(SUFFIXES))}; remove the folder or convert its files"
            )
    if len(labels) < 2:
        raise DataError(
            f"{root}: expected a folder for each of at least two classes, found {labels or 'no images'} "
            f"(files ending in {', '.join(sorted(SUFFIXES))})"
        )
    for split, present in names.items():
        if absent := set(labels) - present:
            raise DataError(f"{root}: class {min(absent)!r} has no images in {split}; found there: {sorted(present)}")
    return tuple(labels)


def _splits(samples: dict[str, list[Sample]], seed: int) -> tuple[dict[str, list[Sample]], str]:
    if len(samples) == 1:
        ((split, members),) = samples.items()
        parts = stratified(members, (0.7, 0.15, 0.15), seed=seed)
        folder = "" if split == "all" else "train folder, "
        return dict(zip(SPLITS, parts, strict=True)), f"{folder}stratified 70/15/15, seed {seed}"
    if len(samples) == 3:
        return samples, "as the folders have them"
    # The one held-out folder is the final test: choices must not be made on it.
    held_out = next(split for split in samples if split != "train")
    train, validation = stratified(samples["train"], (1 - CARVED, CARVED), seed=seed)
    rule = f"test is the folder `{held_out}`; validation is {CARVED:.0%} of train, stratified, seed {seed}"
    return {"train": train, "validation": validation, "test": samples[held_out]}, rule
