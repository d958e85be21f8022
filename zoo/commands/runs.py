"""What commands about recipes share: options, the runs that they choose, and the report of what came of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from zoo.base.commandline import short

__all__ = [
    "Data",
    "MaybeRecipe",
    "Model",
    "Only",
    "RecipeName",
    "Settings",
    "Weights",
    "chosen_runs",
    "compare",
    "named_source",
    "notes_of",
    "report",
]

RecipeName = Annotated[str, typer.Option("--recipe", help="Name in zoo/recipes, or path of a TOML file.")]
MaybeRecipe = Annotated[
    str | None, typer.Option("--recipe", help="Everything that this recipe makes, instead of naming artefacts.")
]
Data = Annotated[
    str | None, typer.Option("--data", help="Folder of images, or a data set by name (`pocketzoo data` lists them).")
]
Model = Annotated[str | None, typer.Option("--model", help="Architecture: lenet, or any timm name.")]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="First weights: none, pretrained, or a file (FILE#KEY: a network in it)."),
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: train.lr=0.001. Repeatable.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only this run of the recipe. Repeatable.")]


def chosen_runs(
    recipe: str,
    data: str | None,
    model: str | None,
    weights: str | None,
    settings: list[str] | None,
    only: list[str] | None,
) -> list[Any]:
    """The runs of a recipe, with the command line's overrides; with `only`, those of these names."""
    from zoo.base.errors import unknown_name
    from zoo.training.recipe import load_recipe

    runs = load_recipe(recipe, data=data, model=model, weights=weights, settings=settings or ()).run
    for name in only or ():
        if name not in [run.artefact for run in runs]:
            raise unknown_name("run", name, [run.artefact for run in runs])
    return [run for run in runs if not only or run.artefact in only]


def named_source(data: str | None) -> Any:
    """The data set named on the command line, if any."""
    from zoo.training.workspace import DataSource

    # A relative path means something else in another working directory.
    return DataSource(name=str(Path(data).resolve()) if Path(data).is_dir() else data) if data else None


def notes_of(artefact: Path, data: str | None) -> Any:
    """What is known of an artefact's data: its folder's run.json, unless the command line names another data set."""
    from zoo.training.workspace import notes_for

    return notes_for(artefact.parent, named_source(data))


def report(cards: list[Any], paths: list[Path], as_json: bool) -> None:
    """One line per artefact: what it is and how it does on validation data."""
    for card, path in zip(cards, paths, strict=True):
        metrics = card.metrics("validation")
        if as_json:
            print(json.dumps({"path": str(path), "card": dataclasses.asdict(card)}))
            continue
        measured = f"validation top-1 {metrics.top1:.2%} (n = {metrics.n})" if metrics else "not measured"
        print(f"{short(path)}: {measured}, {card.inform.macs / 1e6:.1f} MMACs, {path.stat().st_size / 1e6:.2f} MB")


def compare(cards: list[Any]) -> Table:
    """Trainings side by side: what was trained, how well, how long."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for heading in ("trained", "validation top-1 %", "95 % CI", "n", "best epoch", "seconds", "test top-1 %", "test n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for card in cards:
        steps = [entry for entry in card.lineage if entry.stage == "train"]
        summary, validation, test = steps[-1].summary, card.metrics("validation"), card.metrics("test")
        table.add_row(
            card.name,
            f"{summary['trainable']:,}",
            f"{validation.top1 * 100:.1f}",
            f"{validation.low * 100:.1f}-{validation.high * 100:.1f}",
            str(validation.n),
            f"{summary['best_epoch']}/{summary['epochs']}",
            f"{summary['seconds']:.0f}",
            f"{test.top1 * 100:.1f}" if test else "not read",
            str(test.n) if test else "",
        )
    return table
