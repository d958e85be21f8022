"""Your own pictures: a folder with one folder per class.

Three layouts are understood:

- `train/CLASS/...`, `val/CLASS/...`, `test/CLASS/...`: the splits as they are (`valid` and `validation` mean `val`);
- `train` and `val` only: `val` is the final test, and validation is carved out of `train`;
- `CLASS/...`: split 70/15/15.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.datasets.base import Dataset, Sample, check_disjoint
from zoo.datasets.splits import stratified
from zoo.errors import DataError, ImageError
from zoo.files import output_root, write_bytes
from zoo.image import decode
from zoo.machine import cores
from zoo.progress import note, track

__all__ = ["CARVED", "MAX_UNREADABLE", "SUFFIXES", "open_folder"]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CARVED = 0.2
"""The share of `train` that becomes validation where the folder has no split of that purpose."""
MAX_UNREADABLE = 0.05
"""More unreadable files than this share is an error: something is wrong with the copy, not with a few pictures."""

_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class _File:
    path: Path
    name: str
    label: str


def open_folder(root: Path, *, seed: int = 0) -> Dataset:
    """Open a folder of pictures; every file is decoded once, so that nothing fails in the middle of training.

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
    for entry in _folders(root):
        if (split := _ALIASES.get(entry.name.lower())) and found.setdefault(split, entry) != entry:
            raise DataError(f"{root}: {found[split].name} and {entry.name} both mean {split}; keep one of them")
    if found and "train" not in found:
        raise DataError(f"{root}: has {', '.join(sorted(found))} but no `train` folder")
    groups = {split: _files(folder, root) for split, folder in found.items()} or {"all": _files(root, root)}
    class_folders = [entry for folder in found.values() or [root] for entry in _folders(folder)]
    labels = _labels(groups, class_folders, root)
    samples, skipped = _read(groups, labels, root)
    splits, rule = _splits(samples, seed)
    check_disjoint(splits)
    for problem in skipped[:10]:
        note(f"skipped {problem}")
    if skipped:
        note(f"{root}: skipped {len(skipped)} unreadable file(s) of {sum(map(len, groups.values()))}")
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


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path, root: Path) -> list[_File]:
    return [
        _File(path, str(path.relative_to(root)), group.name)
        for group in _folders(folder)
        for path in sorted(group.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not _hidden(path.relative_to(group)) and path.is_file()
    ]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _labels(groups: dict[str, list[_File]], class_folders: list[Path], root: Path) -> tuple[str, ...]:
    names = {split: {file.label for file in files} for split, files in groups.items()}
    labels = sorted(set().union(*names.values()))
    for folder in class_folders:
        visible = (path for path in folder.rglob("*") if path.is_file() and not _hidden(path.relative_to(folder)))
        if folder.name not in labels and any(visible):
            raise DataError(
                f"{folder}: a class without pictures that can be read; expected files ending in "
                f"{', '.join(sorted(SUFFIXES))}; remove the folder or convert its files"
            )
    if len(labels) < 2:
        raise DataError(
            f"{root}: expected a folder for each of at least two classes, found {labels or 'no pictures'} "
            f"(files ending in {', '.join(sorted(SUFFIXES))})"
        )
    for split, present in names.items():
        if absent := set(labels) - present:
            raise DataError(f"{root}: class {min(absent)!r} has no pictures in {split}; found there: {sorted(present)}")
    return tuple(labels)


def _read(
    groups: dict[str, list[_File]], labels: Sequence[str], root: Path
) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    index = {label: number for number, label in enumerate(labels)}
    everything = [(split, file) for split, files in groups.items() for file in files]
    samples: dict[str, list[Sample]] = {split: [] for split in groups}
    skipped: list[str] = []
    for (split, file), (digest, problem) in zip(everything, _verify([f for _, f in everything], root), strict=True):
        if problem:
            skipped.append(f"{file.name}: {problem}")
        else:
            samples[split].append(Sample(name=file.name, label=index[file.label], digest=digest, source=file.path))
    if len(skipped) > MAX_UNREADABLE * len(everything):
        raise DataError(
            f"{root}: {len(skipped)} of {len(everything)} files are unreadable, more than {MAX_UNREADABLE:.0%}: "
            + "; ".join(skipped[:5])
        )
    return samples, tuple(skipped)


def _verify(files: Sequence[_File], root: Path) -> Iterator[tuple[str, str]]:
    """Digest and problem ("" if none) of each file, remembered by path, size and time of change."""
    memory = output_root() / ".index" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known = _recall(memory)
    keys = [f"{file.name}:{(stat := file.path.stat()).st_size}:{stat.st_mtime_ns}" for file in files]
    unknown = {key: file for key, file in zip(keys, files, strict=True) if key not in known}
    if unknown:
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            results = track(pool.map(_verify_one, unknown.values()), total=len(unknown), description="Reading images")
            known = {key: known[key] for key in keys if key in known} | dict(zip(unknown, results, strict=True))
        # A problem may be repaired without the file changing (its permissions), so only what is good is remembered.
        write_bytes(memory, json.dumps({key: found for key, found in known.items() if not found[1]}).encode())
    return (tuple(known[key]) for key in keys)


def _recall(memory: Path) -> dict[str, Any]:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _verify_one(file: _File) -> tuple[str, str]:
    try:
        data = file.path.read_bytes()
        decode(data)
    except (ImageError, OSError) as error:
        return "", str(error)
    return hashlib.sha256(data).hexdigest(), ""


def _splits(samples: dict[str, list[Sample]], seed: int) -> tuple[dict[str, list[Sample]], str]:
    if "all" in samples:
        train, validation, test = stratified(samples["all"], (0.7, 0.15, 0.15), seed=seed)
        return {"train": train, "validation": validation, "test": test}, f"stratified 70/15/15, seed {seed}"
    if len(samples) == 3:
        return samples, "as the folders have them"
    # The one held-out folder is the final test: choices must not be made on it.
    held_out = next(split for split in samples if split != "train") if len(samples) == 2 else None
    if held_out is None:
        train, validation, test = stratified(samples["train"], (0.7, 0.15, 0.15), seed=seed)
        return {
            "train": train,
            "validation": validation,
            "test": test,
        }, f"train folder, stratified 70/15/15, seed {seed}"
    train, validation = stratified(samples["train"], (1 - CARVED, CARVED), seed=seed)
    rule = f"test is the folder `{held_out}`; validation is {CARVED:.0%} of train, stratified, seed {seed}"
    return {"train": train, "validation": validation, "test": samples[held_out]}, rule
