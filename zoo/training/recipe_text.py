"""Recipes written back: runs as TOML that zoo.training.recipe.load_recipe reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from zoo.training.recipe import Run

__all__ = ["plain_run", "recipe_text"]


def recipe_text(runs: Sequence[Run], title: Sequence[str]) -> bytes:
    """A recipe file of these runs.

    Args:
        runs: each after the one it starts from.
        title: lines of the comment on top.
    """
    comment = "".join(f"# {line}\n" for line in title)
    return f"{comment}\n{tomli_w.dumps({'run': [plain_run(run) for run in runs]})}".encode()


def plain_run(run: Run) -> dict[str, Any]:
    """What of a run differs from the defaults, as TOML has it: tables, lists, texts, numbers and booleans."""
    found: dict[str, Any] = _changes(run, Run())
    return found


def _changes(value: Any, default: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        below = default if type(default) is type(value) else None
        pairs = {
            entry.name: (getattr(value, entry.name), getattr(below, entry.name, dataclasses.MISSING))
            for entry in dataclasses.fields(value)
        }
        # TOML has no null: a key that is None there is None by being absent.
        return {
            name: _changes(mine, theirs)
            for name, (mine, theirs) in pairs.items()
            if mine is not None and mine != theirs
        }
    if isinstance(value, Mapping):
        return {name: _changes(entry, None) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_changes(entry, None) for entry in value]
    return value
