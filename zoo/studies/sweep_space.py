"""What a sweep searches: ranges read from a file, and the run with values out of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import UsageError, unknown_name
from zoo.base.settings import merge, nested, parse_value
from zoo.training.recipe import Run, read_toml
from zoo.training.recipe_text import plain_run

__all__ = ["Distribution", "Scalar", "Space", "check_space", "plain", "read_search", "varied"]

_FOLDER = Path(__file__).parents[1] / "recipes" / "search"
_FIXED = ("data", "images_per_split", "labels", "name", "split_seed", "start", "test_on", "thin")
"""Keys that decide what is measured, or on what: trials that differ in them cannot be compared."""

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution
Space = Mapping[str, Distribution]
"""Key of a run -> the values it may take."""
Scalar = str | int | float | bool
"""A value as Optuna keeps it: a number of a range, or one of several choices as TOML."""


@dataclass(frozen=True, kw_only=True)
class _Range:
    """The values a recipe's key may take: from `low` to `high`, or one of `choices`."""

    low: float | None = None
    high: float | None = None
    step: float | None = None
    """Distance between the values; whole numbers have 1 by default."""
    log: bool = False
    """Whether every order of magnitude is equally probable."""
    choices: tuple[Any, ...] | None = None


def read_search(name: str) -> dict[str, Distribution]:
    """The searched keys of a search file: name in zoo/recipes/search, or path of a TOML file.

    Its one table `[search]` has a key of the recipe per line: `"train.lr" = { low = 1e-5, high = 1e-2, log = true }`,
    `"train.epochs" = { low = 2, high = 10, step = 2 }` or `"train.optimizer" = { choices = ["sgd", "adamw"] }`.

    Raises:
        UsageError: no such file, not TOML, or a range that is none (names its key).
    """
    path, document = read_toml(name, _FOLDER, kind="search")
    table = document.pop("search", None)
    if document:
        raise UsageError(f"{path}: {unknown_name('table', next(iter(document)), ['search'])}")
    if not isinstance(table, dict) or not table:
        raise UsageError(
            f'{path}: expected a table [search] with lines like "train.lr" = {{ low = 1e-5, high = 1e-2 }}'
        )
    return {key: _distribution(value, f"{path.name}: {key}") for key, value in _flat(table)}


def check_space(run: Run, space: Space) -> None:
    """Check that the run takes the ends of every range, and every choice.

    Raises:
        UsageError: a key that no recipe has (with close matches) or that must not be searched, or a value that the
            run does not take.
    """
    for key, values in space.items():
        if key in _FIXED:
            raise UsageError(f"{key!r} cannot be searched: trials on other data say nothing about each other")
        for example in values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high):
            varied(run, {key: example})


def varied(run: Run, settings: Mapping[str, Any]) -> Run:
    """The run with other settings, checked as a recipe is.

    Raises:
        UsageError: a key that no recipe has, or a value that the run does not take.
    """
    changes = (nested(key, plain(value)) for key, value in settings.items())
    try:
        return to_dataclass(Run, merge(plain_run(run), *changes), "search")
    except DocumentError as error:
        raise UsageError(str(error)) from None


def plain(value: Scalar) -> Any:
    """A value as a recipe has it."""
    return parse_value(value) if isinstance(value, str) else value


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Ranges by dotted key; TOML reads a dotted key without quotes as nested tables."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, dict) and value and all(isinstance(entry, dict) for entry in value.values())
        if nested:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _distribution(value: Any, where: str) -> Distribution:
    try:
        found = to_dataclass(_Range, value, where)
    except DocumentError as error:
        raise UsageError(str(error)) from None
    try:
        return _optuna(found, whole=all(isinstance(value.get(name, 0), int) for name in ("low", "high", "step")))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{where}: {error}") from None


def _optuna(found: _Range, *, whole: bool) -> Distribution:
    """A range as Optuna's distribution, which checks it."""
    low, high, step = found.low, found.high, found.step
    if found.choices is not None:
        if not found.choices or found != _Range(choices=found.choices):
            raise ValueError("give `choices` with at least one value, or `low` and `high`, not both")
        # JSON is a subset of TOML for texts, numbers, booleans and lists of them.
        return CategoricalDistribution([json.dumps(choice) for choice in found.choices])
    if low is None or high is None or not low < high:
        raise ValueError(f"expected `low` < `high` (or `choices`), got {low} and {high}")
    if whole:
        return IntDistribution(int(low), int(high), log=found.log, step=int(step) if step is not None else 1)
    return FloatDistribution(low, high, log=found.log, step=step)
