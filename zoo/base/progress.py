"""Progress on standard error, with an estimate of the time left: a bar on a terminal, elsewhere a line now and then.

Within :func:`chain` both also say how long all of its steps will take together.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

__all__ = ["Bar", "Chain", "Ongoing", "chain", "note", "track"]

LINE_SECONDS = 30.0
"""Between two lines where there is no terminal; what takes less has none."""
_UP_TO_DATE_SECONDS = 3.0
"""A step that took less had nothing to do, and says nothing of how fast others are."""

T = TypeVar("T")


class Chain:
    """Steps one after the other, and how long those that are left will take by the pace of those that have ended.

    Args:
        shares: of each step, how long it takes beside the others.
        seconds: of all steps, as somebody announced them; None: unknown until one has ended.
    """

    def __init__(self, shares: Sequence[float], seconds: float | None = None) -> None:
        self.shares, self.pace = shares, seconds / sum(shares) if seconds else None
        self.begun: list[float] = []
        """When each step began that has begun."""

    def begin(self) -> None:
        """The next step begins, and with it ends the one before."""
        self.begun.append(time.monotonic())
        took = [later - begin for begin, later in itertools.pairwise(self.begun)]
        ended = zip(took, self.shares, strict=False)
        worked = [(seconds, share) for seconds, share in ended if seconds >= _UP_TO_DATE_SECONDS]
        if worked:
            self.pace = sum(seconds for seconds, _ in worked) / sum(share for _, share in worked)

    def left(self, least: float = 0.0) -> float | None:
        """Seconds until all steps have ended; None: nothing is known yet.

        Args:
            least: what the step that is running still takes, by its own progress.
        """
        if self.pace is None or not self.begun:
            return None
        now, later = self.shares[len(self.begun) - 1], self.shares[len(self.begun) :]
        return max(least, self.pace * now - (time.monotonic() - self.begun[-1])) + self.pace * sum(later)


_chain: Chain | None = None


@contextmanager
def chain(steps: Chain) -> Iterator[None]:
    """Meanwhile, what shows progress also says when all of these steps will have ended."""
    global _chain
    before, _chain = _chain, steps
    try:
        yield
    finally:
        _chain = before


def _all_left(least: float = 0.0) -> str:
    left = _chain.left(least) if _chain else None
    return "" if left is None else f"all steps {tqdm.format_interval(left)} left"


class Bar(tqdm):  # type: ignore[misc]
    """A progress bar that ends with what is left of the chain around it."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What the bar is drawn from."""
        found: dict[str, Any] = super().format_dict
        rate = found["rate"] or (found["n"] - found["initial"]) / max(found["elapsed"], 1e-9)
        least = (found["total"] - found["n"]) / rate if found["total"] and rate else 0.0
        return found | {"postfix": ", ".join(text for text in (found["postfix"], _all_left(least)) if text) or None}


def track(items: Iterable[T], *, total: int, description: str, **options: Any) -> Iterator[T]:
    """Iterate with a progress bar on a terminal, with a line every LINE_SECONDS elsewhere (a log, a pipe)."""
    if sys.stderr.isatty():
        return iter(Bar(items, total=total, desc=description, leave=False, **options))
    return _with_lines(items, total, description)


def _with_lines(items: Iterable[T], total: int, description: str) -> Iterator[T]:
    begin = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            seconds = (now - begin) / done * (total - done) if done else 0.0
            left = tqdm.format_interval(seconds) if done else "?"
            note(", ".join(filter(None, (f"{description}: {done:,} of {total:,}, {left} left", _all_left(seconds)))))
        yield item


class Ongoing:
    """Progress of work whose amount becomes known while it is done, shown as `track` does it."""

    def __init__(self, description: str, unit: str) -> None:
        self._text, self._unit = description, unit
        self._done = self._skipped = 0
        self._begin = self._last = time.monotonic()
        self._bar = Bar(desc=description, unit=f" {unit}", leave=False) if sys.stderr.isatty() else None

    def add(self, count: int, *, total: float | None, state: str, skipped: bool = False) -> None:
        """Tell that `count` more are done.

        Args:
            count: in this process's rate, unless they are `skipped`.
            total: of all, where it is known or can be estimated.
            state: said besides, or instead.
            skipped: they were done before.
        """
        self._done += count
        self._skipped += count if skipped else 0
        if self._bar is not None:
            self._bar.total, self._bar.initial = total and round(total), self._skipped
            self._bar.set_postfix_str(state, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        rate = (self._done - self._skipped) / (now - self._begin)
        left = f"{tqdm.format_interval((total - self._done) / rate)} left" if total and rate else "time left unknown"
        done = f"{self._done:,} of {round(total):,}" if total else f"{self._done:,}"
        note(f"{self._text}: {done} {self._unit}, {rate:,.1f} a second, {left}{', ' * bool(state)}{state}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def note(text: str) -> None:
    """One line for the person watching: standard error, above any bar."""
    tqdm.write(text, file=sys.stderr)
