"""Everything that can go wrong for a user, as one tree.

PocketzooError            every message says what was expected, what was found and what to do
├── UsageError            a name, option or recipe key that does not exist (exit code 2)
├── DataError             a data set that cannot be used: missing, unreadable, leaking between splits
├── ImageError            bytes that are not an acceptable image
│   ├── ImageFormatError  an image in a format that is not accepted, or no image at all
│   └── ImageSizeError    more pixels or pieces, or a more extreme ratio of its sides, than is accepted
├── CardError             a missing, malformed or contradictory card
├── ArtefactError         a checkpoint or graph that is missing, inconsistent or at the wrong stage
├── TrainingError         training that cannot go on (a loss that is not finite)
└── CheckError            a self-check that failed: golden probabilities, export parity
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ArtefactError",
    "CardError",
    "CheckError",
    "DataError",
    "ImageError",
    "ImageFormatError",
    "ImageSizeError",
    "PocketzooError",
    "TrainingError",
    "UsageError",
    "unknown_name",
]


class PocketzooError(Exception):
    """Base of every error this project raises on purpose."""


class UsageError(PocketzooError):
    """A name, option or recipe key that does not exist."""


class DataError(PocketzooError):
    """A data set that cannot be used."""


class ImageError(PocketzooError):
    """Bytes that are not an acceptable image."""


class ImageFormatError(ImageError):
    """An image in a format that is not accepted, or no image at all."""


class ImageSizeError(ImageError):
    """More pixels than are accepted, too elongated, or made of too many pieces to be read in reasonable time."""


class CardError(PocketzooError):
    """A missing, malformed or contradictory card."""


class ArtefactError(PocketzooError):
    """A checkpoint or graph that is missing, inconsistent or at the wrong stage."""


class TrainingError(PocketzooError):
    """Training that cannot go on."""


class CheckError(PocketzooError):
    """A self-check that failed."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in `known`, with the closest matches.

    `kind` is the noun of the message ("model", "recipe key").
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    if close:
        hint = "did you mean " + ", ".join(close) + "?"
    elif len(names) <= 20:
        hint = "known: " + ", ".join(names)
    else:
        hint = f"{len(names)} names are known; none is close"
    return UsageError(f"unknown {kind} {name!r}; {hint}")
