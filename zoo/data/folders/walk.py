"""Every file below a folder, once: images by their suffix, and why the others are none."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from zoo.artefact.decode import SUFFIXES, UNREAD, sniff
from zoo.base.errors import DataError
from zoo.base.files import output_root
from zoo.data.folders.unused import Unused, printable

__all__ = ["OUTSIDE", "Walked", "name_problem", "walk"]

OUTSIDE = "images outside every class folder"

_SYSTEM = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", ".ds_store", "@eadir", "__macosx", "#recycle"}
_SYSTEM |= {"$recycle.bin", "system volume information", "lost+found", ".thumbnails"}
_HEAD = 1024
_OPENED = 1000
"""Where so many files of a suffix in a row are no images by their content, the others are not opened: a million images
may have a million text files beside them. Files without a suffix all are."""


@dataclass(frozen=True, kw_only=True)
class Walked:
    """What is below a folder, by names relative to it with `/` between folders, in the order of their parts."""

    images: list[str] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)
    artefacts: tuple[int, int] | None = None
    """Identity of the folder that is no part of any data set."""
    others: Counter[str] = field(default_factory=Counter)
    """Suffix -> how many of the files opened last were no images."""


def walk(folder: Path) -> Walked:
    """List a folder, however deep; links are followed, but not back to a folder they are in.

    Raises:
        DataError: a folder that cannot be read, or whose name is no text or holds control characters.
    """
    own = output_root()
    found = Walked(artefacts=_identity(own) if own.is_dir() else None)
    try:
        _visit(str(folder), "", [_identity(folder)], found)
    except OSError as error:
        raise DataError(
            f"{printable(str(folder))}: a folder cannot be read: {error}; allow it, or take it out"
        ) from error
    return found


def name_problem(name: str) -> str | None:
    """What is wrong with a name: no text, or control characters; None for a good one."""
    if name.isprintable():
        return None
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "is no text in this system's encoding"
    if any(ord(character) < 32 or 127 <= ord(character) < 160 or character in "\u2028\u2029" for character in name):
        return "holds control characters"
    return None


def _visit(folder: str, prefix: str, above: list[tuple[int, int]], found: Walked) -> None:
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        name, is_folder = prefix + entry.name, entry.is_dir()
        if reason := _left_out(entry.name):
            found.unused.append(Unused(f"{name}/" if is_folder else name, reason, lost=False))
        elif is_folder:
            if problem := name_problem(entry.name):
                raise DataError(f"the name of the folder {printable(entry.path)} {problem}; rename it")
            here = _identity(entry.path)
            if here == found.artefacts:
                found.unused.append(Unused(f"{name}/", "the folder that artefacts are written to", lost=False))
            elif here in above:
                reason = "links back to a folder that they are in"
                found.unused.append(Unused(f"{name}/", reason, lost=False))
            else:
                _visit(entry.path, f"{name}/", [*above, here], found)
        elif unused := _no_image(entry, name, found.others):
            found.unused.append(unused)
        else:
            found.images.append(name)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _left_out(name: str) -> str | None:
    if name.lower() in _SYSTEM or name.startswith("._"):
        return "left by operating systems and file servers"
    return "hidden: their names begin with a full stop" if name.startswith(".") else None


def _no_image(entry: os.DirEntry[str], name: str, others: Counter[str]) -> Unused | None:
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path for each of a million files takes long
    if not entry.is_file():
        is_link = entry.is_symlink()
        return Unused(name, "links to nothing" if is_link else "no regular files", lost=is_link and suffix in SUFFIXES)
    if problem := name_problem(entry.name):
        return Unused(name, f"the name {problem}; rename them")
    if suffix in SUFFIXES:
        return None
    if suffix in UNREAD:
        return Unused(name, f"{suffix} files, which are not read here; {UNREAD[suffix]}")
    if not suffix or others[suffix] < _OPENED:
        if kind := _kind(entry.path):
            others[suffix] = 0
            return Unused(name, "images without a suffix of images; rename them", detail=f"{kind} by its content")
        others[suffix] += 1
    return Unused(name, f"no images ({suffix or 'no suffix'})", lost=False)


def _kind(path: str) -> str | None:
    try:
        with open(path, "rb") as stream:  # noqa: PTH123
            return sniff(stream.read(_HEAD))
    except OSError:
        return None
