"""Names of classes: text without control characters, in NFC, and none that only differs as typing errors do."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from zoo.base.errors import DataError
from zoo.data.folders.unused import printable
from zoo.data.folders.walk import name_problem

__all__ = ["canonical", "check_class_names"]


def canonical(name: str) -> str:
    """A name as labels have it: Unicode normal form C, whatever the file system or the list has."""
    return unicodedata.normalize("NFC", name)


def check_class_names(names: Iterable[str], where: str) -> None:
    """Check the names of classes.

    Args:
        names: as they are written; the same one may come several times.
        where: the data set, for messages.

    Raises:
        DataError: a name is empty, no text or holds control characters, or two differ only in case, blanks or Unicode
            normal form.
    """
    seen: dict[str, str] = {}
    for name in names:
        if problem := name_problem(name) or (None if name.strip() else "is empty"):
            raise DataError(f"{where}: the name of the class '{printable(name)}' {problem}; rename it")
        key = "".join(canonical(canonical(name).casefold()).split())
        if (other := seen.setdefault(key, name)) != name:
            raise DataError(
                f"{where}: the classes {other!a} and {name!a} differ only in {_difference(other, name)}; give both "
                "the same name, or different ones"
            )


def _difference(one: str, other: str) -> str:
    if canonical(one) == canonical(other):
        return "Unicode normal form"
    return "blanks" if "".join(one.split()) == "".join(other.split()) else "case"
