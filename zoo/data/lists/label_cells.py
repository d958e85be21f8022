"""What a cell of a list says about an image's label, and whether lists name several labels an image."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from zoo.base.errors import DataError

__all__ = ["check_one_label", "label_of"]

_SURE, _LIKELY = "|;", ",+&/"
"""What stands between several labels: in a name of one label never, or perhaps."""
_REFUSED = (
    "but each image is to have one: classifiers with several labels an image are not trained here; keep one label in "
    "each row"
)


def label_of(value: Any, *, where: str) -> str:
    """The label in a cell; "" if there is none.

    Args:
        value: text, a whole number, a truth value, or a sequence of at most one of these; None: no label.
        where: list and row, for messages.

    Raises:
        DataError: several labels, or what is no label.
    """
    if isinstance(value, str):
        text = value.rstrip("\r\n")
        if not (text.startswith("[") and text.endswith("]")):
            return text if text.strip() else ""
        try:
            value = json.loads(text)
        except ValueError:
            value = [part.strip(" '\"") for part in text[1:-1].split(",")]
    if isinstance(value, list | tuple):
        if len(value) > 1:
            raise DataError(f"{where}: several labels ({', '.join(map(str, value[:4]))}), {_REFUSED}")
        return label_of(value[0], where=where) if value else ""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        # What pandas makes of whole numbers in a column that lacks some.
        value = int(value)
    if not isinstance(value, bool | int):
        raise DataError(
            f"{where}: expected a label (text or a whole number), found {value!r}; name another --label-column"
        )
    return str(value)


def check_one_label(labels: Sequence[str], where: str) -> None:
    """Check that no label is several, joined by a sign.

    Raises:
        DataError: one has a bar or a semicolon in it, or another sign between what are labels on their own.
    """
    known = set(labels)
    for label in labels:
        for sign in _SURE + _LIKELY:
            parts = [part.strip() for part in label.split(sign)]
            if len(parts) > 1 and all(parts) and (sign in _SURE or known.issuperset(parts)):
                raise DataError(
                    f"{where}: {label!r} looks like several labels, {' and '.join(parts[:4])}, {_REFUSED}; if it is "
                    f"the name of one class, write it without {sign!r}"
                )
