"""Image files on disk: found class by class, decoded once, and remembered as good."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.artefact.decode import SUFFIXES
from zoo.artefact.preprocess import decode
from zoo.base.errors import DataError, ImageError
from zoo.base.files import output_root, write_bytes
from zoo.base.machine import cores
from zoo.base.progress import note, track
from zoo.data.dataset import Sample

__all__ = [
    "MAX_UNREADABLE",
    "ImageFile",
    "class_folders",
    "files_of_classes",
    "is_hidden",
    "read_image_files",
]

MAX_UNREADABLE = 0.05
"""More unreadable files than this share is an error: something is wrong with the copy, not with a few images."""


@dataclass(frozen=True)
class ImageFile:
    """An image that has not been read yet."""

    path: Path
    name: str
    """Relative to the data set, with `/` between folders on every system."""
    label: str


def class_folders(root: Path) -> list[Path]:
    """The folders inside `root` that are not hidden, by name."""
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def files_of_classes(folder: Path, root: Path) -> list[ImageFile]:
    """Every image (by suffix) of `folder/CLASS/`, however deep, named relative to `root`."""
    return [
        ImageFile(path, path.relative_to(root).as_posix(), group.name)
        for group in class_folders(folder)
        for path in sorted(group.rglob("*"))
        if path.suffix.lower() in SUFFIXES and not is_hidden(path.relative_to(group)) and path.is_file()
    ]


def is_hidden(path: Path) -> bool:
    """Whether a part of a relative path starts with a full stop."""
    return any(part.startswith(".") for part in path.parts)


def read_image_files(
    groups: Mapping[str, Sequence[ImageFile]], labels: Sequence[str], root: Path
) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    """Decode every file once, so that nothing fails in the middle of training; afterwards sizes and times are compared.

    Args:
        groups: the files of each split.
        labels: the classes in the order of the labels.
        root: the data set's folder: its path names what is remembered.

    Returns:
        The samples of each split, in the given order, and the unreadable files, each with the reason.

    Raises:
        DataError: a file is missing, or more than MAX_UNREADABLE of them cannot be read.
    """
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
    for problem in skipped[:10]:
        note(f"skipped {problem}")
    if skipped:
        note(f"{root}: skipped {len(skipped)} unreadable file(s) of {len(everything)}")
    return samples, tuple(skipped)


def _verify(files: Sequence[ImageFile], root: Path) -> Iterator[tuple[str, str]]:
    """Digest and problem ("" if none) of each file, remembered by path, size and time of change."""
    memory = output_root() / ".index" / f"{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}.json"
    known = _recall(memory)
    try:
        keys = [f"{file.name}:{(stat := file.path.stat()).st_size}:{stat.st_mtime_ns}" for file in files]
    except OSError as error:
        raise DataError(f"{root}: an image is missing: {error}") from error
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


def _verify_one(file: ImageFile) -> tuple[str, str]:
    try:
        data = file.path.read_bytes()
        decode(data)
    except (ImageError, OSError) as error:
        return "", str(error)
    return hashlib.sha256(data).hexdigest(), ""
