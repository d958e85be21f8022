"""What commands about recipes share: options, the runs that they choose, and the report of what came of them."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from zoo.base.commandline import short
from zoo.base.files import output_root
from zoo.base.progress import note

__all__ = [
    "AUTO",
    "BatchSize",
    "Data",
    "Epochs",
    "LabelColumn",
    "Layout",
    "LearningRate",
    "Logs",
    "MaybeRecipe",
    "Minutes",
    "Model",
    "OneRecipe",
    "Only",
    "PathColumn",
    "RecipeName",
    "Settings",
    "SplitColumn",
    "Weights",
    "all_runs",
    "chosen_runs",
    "compare",
    "named_source",
    "notes_of",
    "only_these",
    "recipe_name",
    "report",
    "with_flags",
]

AUTO = "auto"
"""The recipe for data of one's own, where none is named."""
_FORMER = "folder"

RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Name in zoo/recipes, or path of a TOML file. Default: auto where --data or --model is given, else "
        "quickstart.",
        show_default=False,
    ),
]
OneRecipe = Annotated[str, typer.Option("--recipe", help="Name in zoo/recipes, or path of a TOML file.")]
MaybeRecipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Everything that this recipe makes, instead of naming artefacts. Default with --data: auto.",
        show_default=False,
    ),
]
Data = Annotated[
    str | None,
    typer.Option("--data", help="Folder of images, list of them (CSV, ...), or a name of `pocketzoo data`."),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Architecture: lenet, or any timm name. Default: the recipe's, else the best whose weights are at hand.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="First weights: none, pretrained, or a file (FILE#KEY: a network in it)."),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        "--epochs",
        min=1,
        help="Passes over the training images. Default: the recipe's (auto: 8; from random weights 60).",
        show_default=False,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(
        "--lr",
        help="Peak learning rate. Default: the recipe's (auto: 0.0002; from random weights 0.001).",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        min=1,
        help="Images per step, of all processes together. Default: the recipe's (auto: 8 to 64, by the number of "
        "training images).",
        show_default=False,
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option(
        "--minutes",
        help="Instead of --epochs: as many as end within so many minutes, for each run, by its first steps' pace. "
        "Default: no limit.",
        show_default=False,
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout",
        help="How to read a folder: splits (train/CLASS, val/CLASS) or classes (CLASS). Default: what it looks like.",
        show_default=False,
    ),
]
PathColumn = Annotated[
    str | None,
    typer.Option(
        "--path-column",
        help="Of a list: the column of paths, relative to its folder. Default: the one with a usual name.",
        show_default=False,
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--label-column",
        help="Of a list: the column of labels. Default: the one with a usual name.",
        show_default=False,
    ),
]
SplitColumn = Annotated[
    str | None,
    typer.Option(
        "--split-column",
        help="Of a list: the column of train, val and test, or none. Default: the one with a usual name, if any.",
        show_default=False,
    ),
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: train.lr=0.001. Repeatable.")]
Logs = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        help="Log each validated epoch besides log.csv: tensorboard, wandb (sent only if you are logged in). "
        "Repeatable; needs pocketzoo[logs].",
        show_default=False,
    ),
]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only this run of the recipe. Repeatable.")]


def chosen_runs(
    recipe: str | None,
    data: str | None,
    model: str | None,
    weights: str | None,
    settings: list[str] | None,
    only: list[str] | None,
    *,
    made: bool = False,
    tell: bool = True,
) -> list[Any]:
    """The runs of a recipe, with the command line's overrides; with `only`, those of these names.

    With `made` the artefacts should be there: a network that is not named is that of one of them. With `tell` it is
    said which get another name than usual.
    """
    return only_these(all_runs(recipe, data, model, weights, settings, made=made, tell=tell), only)


def all_runs(
    recipe: str | None,
    data: str | None,
    model: str | None,
    weights: str | None,
    settings: list[str] | None,
    *,
    made: bool = False,
    tell: bool = True,
) -> list[Any]:
    """The runs of a recipe, under names that no artefact of other data has; says what was decided."""
    from zoo.training.naming import named_apart
    from zoo.training.recipe import load_recipe

    told: list[str] = []

    def network(first: str) -> str:
        name, reason = _unnamed_network(data, first, made=made)
        if reason not in told:
            told.append(reason)
        return name

    name = recipe_name(recipe, data, model)
    if recipe == _FORMER:
        told.append(f"recipe {_FORMER} is called {AUTO} now")
    runs = load_recipe(name, data=data, model=model, weights=weights, settings=settings or (), network=network).run
    apart = named_apart(runs, output_root())
    told += [
        f"{short(output_root() / run.artefact)} is of other data and stays; of {run.data} it is {other.artefact}"
        for run, other in zip(runs, apart, strict=True)
        if other.artefact != run.artefact and tell
    ]
    # Of the processes that torchrun starts, one talks.
    for line in told if os.environ.get("RANK", "0") == "0" else ():
        note(line)
    return list(apart)


def recipe_name(recipe: str | None, data: str | None, model: str | None) -> str:
    """The recipe that a command line means."""
    if recipe == _FORMER:
        return AUTO
    return recipe or (AUTO if data or model else "quickstart")


def only_these(runs: list[Any], only: list[str] | None) -> list[Any]:
    """Those of the given names; all of them without."""
    from zoo.base.errors import unknown_name

    for name in only or ():
        if name not in [run.artefact for run in runs]:
            raise unknown_name("run", name, [run.artefact for run in runs])
    return [run for run in runs if not only or run.artefact in only]


def _unnamed_network(data: str | None, weights: str, *, made: bool) -> tuple[str, str]:
    """The network of a run without one, and a sentence that says why."""
    from zoo.networks.weights.at_hand import best_at_hand, by_worth
    from zoo.training.naming import trained_networks

    trained = by_worth(trained_networks(data, output_root())) if made and data else []
    if not trained:
        return best_at_hand(weights)
    others = f", before {', '.join(trained[1:])}" if trained[1:] else ""
    return trained[0], f"network: {trained[0]}, which was trained on {data}{others}; --model NAME takes another"


def with_flags(
    settings: list[str] | None,
    *,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
    minutes: float | None = None,
    layout: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> list[str]:
    """The settings, and what has a flag of its own, as settings.

    Raises:
        UsageError: two of them speak of the same thing.
    """
    from zoo.base.errors import UsageError
    from zoo.base.settings import parse_setting

    flags = {
        "train.epochs": ("--epochs", epochs),
        "train.lr": ("--lr", lr),
        "train.batch_size": ("--batch-size", batch_size),
        "minutes": ("--minutes", minutes),
        "reading.layout": ("--layout", layout),
        "reading.path_column": ("--path-column", path_column),
        "reading.label_column": ("--label-column", label_column),
        "reading.split_column": ("--split-column", split_column),
    }
    given = {key: (flag, value) for key, (flag, value) in flags.items() if value is not None}
    if minutes is not None and epochs is not None:
        raise UsageError("--minutes sets the number of epochs, and so does --epochs; give one of them")
    for key, _ in map(parse_setting, settings or ()):
        if key in given:
            raise UsageError(f"{given[key][0]} and --set {key} say the same; give one of them")
    return [*(settings or ()), *(f"{key}={value!r}" for key, (_, value) in given.items())]


def named_source(data: str | None) -> Any:
    """The data set named on the command line, if any."""
    from zoo.training.workspace import DataSource

    # A relative path means something else in another working directory.
    return DataSource(name=str(Path(data).resolve()) if Path(data).exists() else data) if data else None


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
        unmeasured = f"refit of {card.refit_of}, no validation accuracy" if card.refit_of else "not measured"
        measured = f"validation top-1 {metrics.top1:.2%} (n = {metrics.n})" if metrics else unmeasured
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
