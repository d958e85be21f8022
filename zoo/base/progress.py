"""Progress bars on standard error, with an estimate of the time left; silent where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

__all__ = ["note", "track"]

T = TypeVar("T")


def track(items: Iterable[T], *, total: int, description: str, **options: Any) -> Iterator[T]:
    """Iterate with a progress bar, on a terminal."""
    return iter(tqdm(items, total=total, desc=description, disable=not sys.stderr.isatty(), leave=False, **options))


def note(text: str) -> None:
    """One line for the person watching: standard error, above any bar."""
    tqdm.write(text, file=sys.stderr)
