"""What the runs of an ablation reach: rows from the cards of their checkpoints, and a table of them.

The first run of the recipe is what the others are held against; what they change is read from the cards, not from the
recipe, which may have changed since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.artefact.card import Card, LineageEntry
from zoo.artefact.environment import environment_text
from zoo.base.files import CHECKPOINT, sha256_file
from zoo.base.progress import note
from zoo.base.tables import markdown_table
from zoo.networks.checkpoint import read_card
from zoo.training.recipe import run_names

__all__ = ["RECIPE", "gather", "markdown"]

RECIPE = "ablate"

_Row = Mapping[str, Any]


def gather(output: Path, recipe: str) -> Iterator[dict[str, Any]]:
    """A row for each run of a recipe that was trained; says which are left out.

    Args:
        output: the folder of artefacts.
        recipe: name, or path of a TOML file.

    Raises:
        ArtefactError: a checkpoint that cannot be read.
        UsageError: no such recipe.
    """
    names = run_names(recipe)
    paths = {name: output / name / CHECKPOINT for name in names}
    cards = {name: read_card(path) for name, path in paths.items() if path.is_file()}
    if not cards:
        return
    missing = [name for name in names if name not in cards]
    if missing:
        note(f"{recipe}: {len(missing)} of {len(names)} runs are not trained: {', '.join(missing)}")
    if names[0] in missing:
        note(f"{recipe}: no rows, as all are held against {names[0]}")
        return
    first = _training(cards[names[0]])
    for name, card in cards.items():
        if problem := _obstacle(card, first):
            note(f"{recipe}: {name} is left out: {problem}; train it again with --force")
            continue
        yield _row(card, first) | {
            "recipe": Path(recipe).stem,
            "name": name,
            "digest": sha256_file(paths[name]),
        }


def markdown(rows: Sequence[_Row]) -> str:
    """A table per recipe and data set, in Markdown."""
    found: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        found.setdefault((row["recipe"], row["dataset"]), []).append(row)
    return "\n\n".join(_table(recipe, dataset, group) for (recipe, dataset), group in found.items())


def _table(recipe: str, dataset: str, rows: Sequence[_Row]) -> str:
    heading = ["<run", "<what it changes", "top-1 %", "95 % CI", "epochs", "seconds", "CPU s"]
    cells = [
        [
            row["name"],
            "; ".join(f"{key}: {_said(old)} -> {_said(new)}" for key, (old, new) in row["changes"].items()) or "-",
            f"{100 * row['top1']:.1f}",
            f"{100 * row['low']:.1f}-{100 * row['high']:.1f}",
            f"{row['epochs']}",
            f"{row['seconds']:.0f}",
            f"{row['cpu_seconds']:.0f}",
        ]
        for row in rows
    ]
    counts = " or ".join(f"{n:,}" for n in sorted({row["n"] for row in rows}))
    devices = ", ".join(sorted({row["device"] for row in rows}))
    told = f"`{recipe}` on {dataset}, validation (n = {counts}), trained on {devices}"
    return f"{told}; {environment_text(rows[0]['environment'])}:\n\n{markdown_table(heading, cells)}"


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_said(inner)}" for name, inner in value.items())
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _training(card: Card) -> LineageEntry:
    return next(entry for entry in reversed(card.lineage) if entry.stage == "train")


def _obstacle(card: Card, first: LineageEntry) -> str | None:
    entry = _training(card)
    if "environment" not in entry.summary:
        return "its card does not say on which machine it was trained"
    if card.metrics("validation") is None:
        return "its card has no validation accuracy"
    if entry.config["data"]["name"] != first.config["data"]["name"]:
        return f"it was trained on {entry.config['data']['name']}, the first one on {first.config['data']['name']}"
    return None


def _row(card: Card, first: LineageEntry) -> dict[str, Any]:
    entry, metrics = _training(card), card.metrics("validation")
    assert metrics is not None  # else there is an obstacle
    summary = entry.summary
    return {
        "changes": dict(_changes(_settings(first), _settings(entry))),
        "dataset": metrics.dataset,
        "dataset_digest": entry.config["data"]["digest"],
        "n": metrics.n,
        "top1": metrics.top1,
        "low": metrics.low,
        "high": metrics.high,
        "epochs": summary["epochs"],
        "seconds": summary["seconds"],
        "cpu_seconds": summary["cpu_seconds"],
        "device": summary["device"],
        "environment": summary["environment"],
        "time": summary["ended"],
    }


def _settings(entry: LineageEntry) -> dict[str, Any]:
    """The keys of a recipe, from a lineage; of the data what a recipe says of it."""
    settings = dict(entry.config)
    settings["train"] = settings.pop("fit")
    settings["thin"] = settings.pop("data").get("thin")
    return settings


def _changes(first: Mapping[str, Any], other: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, list[Any]]]:
    """Keys whose values differ, with both values."""
    for key in {**first, **other}:
        old, new = first.get(key), other.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{within}{key}.")
        elif old != new:
            yield within + key, [old, new]
