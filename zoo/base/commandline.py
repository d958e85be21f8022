"""What every command shares: the typer application, the options, and the ways of reporting."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

__all__ = [
    "Artefact",
    "Artefacts",
    "AsJson",
    "Data",
    "Force",
    "MaybeRecipe",
    "Model",
    "Only",
    "RecipeName",
    "Resume",
    "Rounds",
    "Seconds",
    "Settings",
    "Weights",
    "app",
    "bench",
    "chosen_runs",
    "command_line",
    "compare",
    "console",
    "named_source",
    "notes_of",
    "report",
    "short",
]

app = typer.Typer(
    help="Fine-tune image classifiers, make them small and fast, serve them, and prove it with numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
bench = typer.Typer(help="Measure artefacts: test accuracy and latency.", no_args_is_help=True)
app.add_typer(bench, name="bench")

Artefact = Annotated[Path, typer.Argument(help="Folder or file of an artefact, like output/vit-lora.")]
Artefacts = Annotated[list[Path] | None, typer.Argument(help="Folders of artefacts, like output/vit-lora.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="Name in zoo/recipes, or path of a TOML file.")]
MaybeRecipe = Annotated[
    str | None, typer.Option("--recipe", help="Everything that this recipe makes, instead of naming artefacts.")
]
Data = Annotated[
    str | None, typer.Option("--data", help="Folder of images, or a data set by name (`pocketzoo data` lists them).")
]
Model = Annotated[str | None, typer.Option("--model", help="Architecture: lenet, or any timm name.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="First weights: none, pretrained, or a state-dict file.")
]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: train.lr=0.001. Repeatable.")]
Only = Annotated[list[str] | None, typer.Option("--only", help="Only this run of the recipe. Repeatable.")]
Force = Annotated[bool, typer.Option("--force", help="Do it even if the result is up to date.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Continue an interrupted run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Rounds = Annotated[int, typer.Option(help="Processes per variant; they take turns.")]
Seconds = Annotated[float, typer.Option(help="Measured time per process.")]


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


def command_line(words: list[str], options: dict[str, Any]) -> str:
    """What was typed, as a shell understands it, with the defaults that matter.

    Args:
        words: the command and its arguments.
        options: flag -> value. A flag is given by true, repeated for each value of a list, and left out by false or
            None.
    """
    given = [
        part
        for flag, values in options.items()
        for value in (values if isinstance(values, list) else [values])
        if value is not None and value is not False
        for part in ([flag] if value is True else [flag, str(value)])
    ]
    return shlex.join(["pocketzoo", *words, *given])


def short(path: Path) -> Path:
    """A path as it is shown: relative to the working directory if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def console() -> Console:
    """Where tables are printed."""
    # Without a terminal rich assumes 80 columns and would cut the table off.
    return Console(width=None if sys.stdout.isatty() else 240)
