"""The command that measures forgetting."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.base.commandline import TRAIN, AsJson, Force, Resume, app, console
from zoo.base.files import output_root
from zoo.base.progress import note
from zoo.commands.runs import OneRecipe, Settings, chosen_runs

if TYPE_CHECKING:
    from zoo.artefact.card import Metrics
    from zoo.studies.forgetting import Forgetting


@app.command(rich_help_panel=TRAIN)
def forgetting(
    recipe: OneRecipe = "forgetting",
    settings: Settings = None,
    test: Annotated[bool, typer.Option("--test", help="Measure on the test splits, too.")] = False,
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Measure what a second training forgets of the first.

    Trains on an old task, then on a new one in several ways.
    """
    from zoo.studies.forgetting import forgetting as experiment
    from zoo.studies.forgetting import write_forgetting

    runs = chosen_runs(recipe, None, None, None, settings, None)
    result = experiment(runs, output_root(), test=test, resume=resume, force=force)
    paths = write_forgetting(result, output_root() / "forgetting", Path(recipe).stem)
    if as_json:
        print(json.dumps(dataclasses.asdict(result)))
        return
    _show(result, test)
    note(f"written: {paths[0]}, {paths[1]}")


def _show(result: Forgetting, test: bool) -> None:
    from rich.table import Table

    splits = ["validation", "test"] if test else ["validation"]
    table = Table("after", title=f"{result.old_data} (old), then {result.new_data} (new): top-1 in %")
    for column in (f"{task} {split}" for split in splits for task in ("old", "new")):
        table.add_column(column, justify="right")
    for column in ("forgotten", "saved", "weights moved", "trainable"):
        table.add_column(column, justify="right")
    for row in result.rows:
        metrics = [row.old, row.new, *((row.old_test, row.new_test) if test else ())]
        table.add_row(
            row.run,
            *(_percent(entry) for entry in metrics),
            f"{100 * row.forgotten:.1f}",
            "" if row.saved is None else f"{row.saved:.0%}",
            f"{row.moved:.1%}",
            "" if row.trainable is None else f"{row.trainable:,}",
        )
    console().print(table)
    console().print(
        f"forgotten: points of old validation top-1 lost since {result.rows[0].run}; "
        f"saved: share of what {result.rows[1].run} forgot"
    )


def _percent(metrics: Metrics | None) -> str:
    return "" if metrics is None else f"{100 * metrics.top1:.1f} ±{50 * (metrics.high - metrics.low):.1f}"
