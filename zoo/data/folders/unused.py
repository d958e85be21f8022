"""What a folder or list has that no data set takes in: counted by reason and class, listed, and refused if too much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from zoo.base.errors import DataError
from zoo.base.files import write_table
from zoo.base.progress import note

__all__ = ["MAX_LOST", "Unused", "check_lost", "printable", "tell", "write_unused"]

MAX_LOST = 0.05
"""More lost images than this share, for one reason, is an error: something is wrong with all of it, not with a few."""

_CLASSES = 8
"""Classes that a line names."""


class Unused(NamedTuple):
    """A file, or a folder (its name ends in `/`), that was left out."""

    file: str
    """Relative to the data set, with `/` between folders."""
    reason: str
    """What it is, in the plural; the end of `3 files not used: ...`."""
    label: str = ""
    """The class whose image it would have been; "": of none."""
    detail: str = ""
    lost: bool = True
    """Whether it is an image that the user may have meant to use."""


def tell(unused: Sequence[Unused], where: str) -> None:
    """One line per reason: how many, of which classes, and the first of them."""
    for reason, entries in _by_reason(unused).items():
        first = entries[0]
        example = f"{printable(first.file)}{': ' if first.detail else ''}{first.detail}"
        note(f"{where}: {len(entries):,} not used: {reason} ({_classes(entries)}{example})")


def check_lost(unused: Iterable[Unused], used: int, where: str) -> None:
    """Check that no reason takes too many images away.

    Args:
        unused: what was left out.
        used: how many images were not.
        where: the data set, for the message.

    Raises:
        DataError: one does; names the first files.
    """
    lost = _by_reason([entry for entry in unused if entry.lost])
    total = used + sum(map(len, lost.values()))
    for reason, entries in lost.items():
        if len(entries) > MAX_LOST * total:
            examples = (f"{printable(entry.file)}{': ' if entry.detail else ''}{entry.detail}" for entry in entries[:5])
            raise DataError(
                f"{where}: {len(entries)} of {total} images would not be used, more than {MAX_LOST:.0%}: {reason} "
                f"({_classes(entries)}{'; '.join(examples)}); mend them or take them out"
            )


def write_unused(unused: Sequence[Unused], path: Path) -> None:
    """The list as CSV (file, class, reason, detail), atomically; without entries an older list goes."""
    if not unused:
        path.unlink(missing_ok=True)
        return
    write_table(
        path,
        [
            {
                "file": printable(entry.file),
                "class": printable(entry.label),
                "reason": entry.reason,
                "detail": printable(entry.detail),
            }
            for entry in unused
        ],
    )


def printable(name: str) -> str:
    """A name in which control characters, and bytes that are no text, are escaped."""
    return name if name.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def _by_reason(unused: Iterable[Unused]) -> dict[str, list[Unused]]:
    found: dict[str, list[Unused]] = {}
    for entry in unused:
        found.setdefault(entry.reason, []).append(entry)
    return found


def _classes(entries: Sequence[Unused]) -> str:
    counts = Counter(entry.label for entry in entries if entry.label)
    shown = [f"{printable(label)} {count:,}" for label, count in counts.most_common(_CLASSES)]
    if not shown:
        return ""
    others = len(counts) - len(shown)
    return ", ".join(shown) + (f" and {others:,} more classes" if others else "") + "; "
