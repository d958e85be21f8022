"""Progress on standard error, with an estimate of the time left: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

__all__ = ["note", "track"]

LINE_SECONDS = 30.0
"""Between two lines where there is no terminal; what takes less has none."""

T = TypeVar("T")


def track(items: Iterable[T], *, total: int, description: str, **options: Any) -> Iterator[T]:
    """Iterate with a progress bar on a terminal, with a line every LINE_SECONDS elsewhere (a log, a pipe)."""
    if sys.stderr.isatty():
        return iter(tqdm(items, total=total, desc=description, leave=False, **options))
    return _with_lines(items, total, description)


def _with_lines(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    begin = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            left = tqdm.format_interval((now - begin) / done * (total - done)) if done else "?"
            note(f"{description}: {done:,} of {total:,}, {left} left")
        yield item


def note(text: str) -> None:
    """One line for the person watching: standard error, above any bar."""
    tqdm.write(text, file=sys.stderr)
