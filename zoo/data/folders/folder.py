"""Your own images: a folder with one folder per class.

Three layouts are understood (zoo.data.folders.layout says how they are told apart):

- `train/CLASS/...`, `val/CLASS/...`, `test/CLASS/...`: the splits as they are; other names in zoo.data.folders.layout;
- `train` and `val` only: `val` is the final test, and validation is carved out of `train`;
- `CLASS/...`: 15 % for validation, 15 % for the test.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from zoo.artefact.decode import SUFFIXES
from zoo.base.errors import DataError
from zoo.data.dataset import Dataset
from zoo.data.folders.assembly import assemble
from zoo.data.folders.class_names import canonical, check_class_names
from zoo.data.folders.image_files import ImageFile
from zoo.data.folders.layout import Layout, find_layout
from zoo.data.folders.reading import Reading
from zoo.data.folders.unused import Unused, printable
from zoo.data.folders.walk import OUTSIDE, walk
from zoo.data.lists.tables import TABLE_SUFFIXES

__all__ = ["open_folder"]


def open_folder(root: Path, *, seed: int = 0, reading: Reading | None = None) -> Dataset:
    """Open a folder of images; every file is decoded once, so that nothing fails in the middle of training.

    Args:
        root: the folder, in one of the layouts above.
        seed: of the splits made here.
        reading: its layout, where the folder can be read in two ways.

    Raises:
        DataError: missing, a layout that is unknown or can be read in two ways, fewer than two classes, a class without
            training images, names that are refused (see class_names), or more than 5 % of the images not used.
    """
    if not root.is_dir():
        raise DataError(f"no folder at {root}; expected train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg")
    found = walk(root)
    reading = reading or Reading()
    layout = find_layout(found.images, layout=reading.layout, where=str(root))
    groups, outside = _groups(found.images, layout, root)
    unused = [*(_with_class(entry, layout) for entry in found.unused), *outside]
    _check_labels(groups, unused, root)
    name = root.resolve().name
    return assemble(groups, root=root, name=name, location=root, seed=seed, unused=unused, white=reading.range)


def _groups(names: Sequence[str], layout: Layout, root: Path) -> tuple[dict[str, list[ImageFile]], list[Unused]]:
    """The files of each split (or of `all`), and the images that are in none."""
    groups: dict[str, list[ImageFile]] = {}
    unused: list[Unused] = []
    labels: dict[str, str] = {}
    spelled: dict[str, set[str]] = {}
    for name in names:
        parts, depth = _parts(name, layout)
        split = layout.splits.get(parts[0]) if layout.splits else "all"
        if len(parts) > depth + 1 and split:
            spelled.setdefault(split, set()).add(parts[depth])
            label = labels.setdefault(parts[depth], canonical(parts[depth]))
            groups.setdefault(split, []).append(ImageFile(f"{root}/{name}", name, label))
        elif parts[0] in layout.flat:
            unused.append(Unused(name, _unlabelled(root / parts[0]), lost=False))
        elif split is None and len(parts) > 1:
            unused.append(Unused(name, "beside the folders of splits", lost=False))
        else:
            unused.append(Unused(name, OUTSIDE))
    # The splits may spell a class in several normal forms, as archives made on several systems do; one split may not.
    for inside in spelled.values():
        check_class_names(sorted(inside), str(root))
    check_class_names(sorted(set(labels.values())), str(root))
    return groups, unused


def _parts(name: str, layout: Layout) -> tuple[list[str], int]:
    """The first three parts of a name, and which of them is the class."""
    return name.split("/", 2), 1 if layout.splits else 0


def _unlabelled(folder: Path) -> str:
    return (
        f"in {folder.name} without class folders and so without labels; `pocketzoo score output/NAME {folder} --out "
        "results` predicts them"
    )


def _with_class(entry: Unused, layout: Layout) -> Unused:
    parts, depth = _parts(entry.file.rstrip("/"), layout)
    return entry._replace(label=canonical(parts[depth])) if len(parts) > depth + 1 else entry


def _check_labels(groups: dict[str, list[ImageFile]], unused: Sequence[Unused], root: Path) -> None:
    labels = {file.label for files in groups.values() for file in files}
    suffixes = f"files ending in {', '.join(sorted(SUFFIXES))}"
    lost = next((entry for entry in unused if entry.lost and entry.label and entry.label not in labels), None)
    if lost:
        raise DataError(
            f"{root}: the class {lost.label!r} has no images that can be read ({lost.file}: {lost.reason}); expected "
            f"{suffixes}; convert its files or remove its folder"
        )
    if len(labels) >= 2:
        return
    found = [printable(label) for label in sorted(labels)] or "no images"
    raise DataError(
        f"{root}: expected a folder for each of at least two classes, found {found} ({suffixes}){_hint(root, labels)}"
    )


def _hint(root: Path, labels: Collection[str]) -> str:
    """What the user may have meant instead."""
    lists = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLE_SUFFIXES)
    if lists:
        return f"; if {lists[0].name} is a list of paths and labels, name it: --data {lists[0]}"
    inside = root / next(iter(labels), "")
    folders = [entry.name for entry in sorted(inside.iterdir()) if entry.is_dir()] if inside != root else []
    return f"; it has the folders {', '.join(folders[:5])}: name it, --data {inside}" if len(folders) > 1 else ""
