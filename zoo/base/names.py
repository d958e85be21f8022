"""What an artefact may be called: its folder's name becomes a model's name in the routes of the server."""

from __future__ import annotations

from zoo.base.errors import UsageError

__all__ = ["LONGEST_NAME", "PRUNED", "check_name", "shown_name", "unfit_name"]

LONGEST_NAME = 128
"""Characters of a model's name."""

PRUNED = "-pruned"
"""Ending of the name of a pruned artefact."""

_LONGEST_ENDING = f"{PRUNED}-int8"
"""What compression and quantization append to the name of a trained artefact."""


def unfit_name(name: str, *, longest: int = LONGEST_NAME) -> str | None:
    """Why a name cannot be that of a model; None where it can. `:` separates a name from `predict` in a route."""
    plain = name.isprintable() and ":" not in name and name == name.strip() and not name.startswith(".")
    if plain and 0 < len(name) <= longest:
        return None
    return (
        f"a model cannot be called {shown_name(name)!r}: expected at most {longest} printable characters, no ':', "
        "no dot in front and no space at either end"
    )


def shown_name(name: str) -> str:
    """A name in printable characters, cut where it is too long."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 3]}..."


def check_name(name: str) -> None:
    """Check that a trained artefact of this name, and what will be made of it, can be served.

    Raises:
        UsageError: it cannot; says how to name it otherwise.
    """
    if reason := unfit_name(name, longest=LONGEST_NAME - len(_LONGEST_ENDING)):
        raise UsageError(f"{reason}; name it otherwise (--set name=NAME), or rename the folder of images")
