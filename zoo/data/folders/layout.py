"""Which folders are splits and which are classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from zoo.base.errors import DataError
from zoo.base.progress import note

__all__ = ["SPLIT_NAMES", "Layout", "find_layout"]

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""What folders, and values in lists, are called (in any case) -> the split."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the first folders of a path are to be read."""

    splits: dict[str, str]
    """Folder -> split; none: the folders are classes."""
    flat: tuple[str, ...] = ()
    """Folders of splits that hold images but no class folders."""


@dataclass(kw_only=True)
class _Top:
    direct: int = 0
    below: Counter[str] = field(default_factory=Counter)


def find_layout(images: Iterable[str], *, layout: str, where: str) -> Layout:
    """Decide how a folder is to be read.

    Args:
        images: names relative to the folder, with `/`.
        layout: of zoo.data.folders.reading.LAYOUTS.
        where: the folder, for messages.

    Raises:
        DataError: two readings are possible, or none; or two folders mean the same split.
    """
    tops: dict[str, _Top] = {}
    for name in images:
        first, slash, rest = name.partition("/")
        if slash:
            top = tops.setdefault(first, _Top())
            second, slash, _ = rest.partition("/")
            if slash:
                top.below[second] += 1
            else:
                top.direct += 1
    named = {name: SPLIT_NAMES[name.lower()] for name in tops if name.lower() in SPLIT_NAMES}
    if layout == "classes" or (layout == "auto" and not _is_splits(tops, named, where)):
        return Layout(splits={})
    return _splits(tops, named, where)


def _is_splits(tops: dict[str, _Top], named: dict[str, str], where: str) -> bool:
    """Whether this can only be splits; False: only classes.

    Raises:
        DataError: it can be both.
    """
    others = [name for name in tops if name not in named]
    nested = [name for name in named if tops[name].below]
    if not named or (others and not nested):
        if named:
            note(
                f"{where}: {_list(sorted(named))} stands beside the class folders {_list(others)}, so it is a class, "
                "too (--layout splits reads it as a split)"
            )
        return False
    if nested and not others:
        return True
    found = f"{where} can be read in two ways:"
    if others:
        raise DataError(
            f"{found} as splits, {_list(sorted(named))} with class folders ({_list(sorted(tops[nested[0]].below))}) "
            f"and {_list(others)} unused: --layout splits; or as the classes {_list(sorted(tops))}: --layout classes"
        )
    raise DataError(
        f"{found} as the classes {_list(sorted(tops))}: --layout classes; or as splits without class folders and so "
        f"without labels: make {sorted(named)[0]}/CLASS/*.jpg of them, or name a list (CSV) of paths and labels with "
        "--data"
    )


def _splits(tops: dict[str, _Top], named: dict[str, str], where: str) -> Layout:
    owner: dict[str, str] = {}
    for name, split in named.items():
        if (other := owner.setdefault(split, name)) != name:
            raise DataError(
                f"{where}: {other} and {name} both mean {split}; keep one of them, or read them as classes: "
                "--layout classes"
            )
    flat = tuple(name for name in named if not tops[name].below)
    if "train" not in owner or owner["train"] in flat:
        found = _list(f"{name} (without class folders)" if name in flat else name for name in sorted(named))
        raise DataError(
            f"{where}: expected class folders with images in `train`, found {found or 'no folder of a split'}, so no "
            "`train` folder to learn from; make train/CLASS/*.jpg, or read the folders as classes: --layout classes"
        )
    return Layout(splits=named, flat=flat)


def _list(names: Iterable[str], most: int = 5) -> str:
    shown: Sequence[str] = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
