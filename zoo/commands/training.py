"""Commands that train: recipes to checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.base.commandline import TRAIN, Artefact, AsJson, Force, Resume, app, console
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, UNMERGED, output_root
from zoo.commands.runs import (
    BatchSize,
    Data,
    Epochs,
    LabelColumn,
    Layout,
    LearningRate,
    Logs,
    Minutes,
    Model,
    Only,
    PathColumn,
    RecipeName,
    Settings,
    SplitColumn,
    Weights,
    chosen_runs,
    compare,
    notes_of,
    report,
    with_flags,
)

__all__ = ["BEFORE_TRAINING", "merge", "refit", "train"]

BEFORE_TRAINING: list[Callable[[Any], None]] = []
"""What other rooms have to say of a run before hours are spent on it; they append to this."""


@app.command(rich_help_panel=TRAIN)
def train(
    recipe: RecipeName = None,
    data: Data = None,
    model: Model = None,
    weights: Weights = None,
    epochs: Epochs = None,
    lr: LearningRate = None,
    batch_size: BatchSize = None,
    minutes: Minutes = None,
    layout: Layout = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    settings: Settings = None,
    only: Only = None,
    log: Logs = None,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="Draw training.png: curves, examples of what it saw, confusion.")
    ] = True,
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train a network on your images, or the checkpoints of a recipe.

    Each is written to output/NAME/model.safetensors.
    """
    from zoo.explain.run_page import try_page
    from zoo.networks.checkpoint import read_card
    from zoo.training.loop.distributed import join_world, others_alive
    from zoo.training.loop.logs import check_logs
    from zoo.training.loop.memory import enough_memory
    from zoo.training.stage import train as stage
    from zoo.validate import write_state_dicts

    check_logs(log or ())
    settings = with_flags(
        settings,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        minutes=minutes,
        layout=layout,
        path_column=path_column,
        label_column=label_column,
        split_column=split_column,
    )
    chosen = chosen_runs(recipe, data, model, weights, settings, only)
    for run in chosen:
        if run.role == "model" and run.model and not (output_root() / run.artefact / CHECKPOINT).is_file():
            for tell in BEFORE_TRAINING:
                tell(run)
    drawn = try_page if page else None
    paths = []
    for run in chosen:
        with others_alive(), enough_memory(run.artefact, run.train):
            paths.append(stage(run, output_root(), resume=resume, force=force, logs=log or (), on_trained=drawn))
    if not join_world().first:
        return
    # A recipe without both kinds of fine-tuned ViT leaves nothing for validators to load.
    with contextlib.suppress(ArtefactError):
        write_state_dicts(output_root())
    cards = [read_card(path) for path in paths]
    if as_json or len(cards) == 1:
        report(cards, paths, as_json)
    else:
        console().print(compare(cards))


@app.command(rich_help_panel=TRAIN)
def refit(
    artefact: Artefact,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the new artefact; default: output/NAME-refit.", show_default=False),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="The file that its training began with, where it was one.", show_default=False),
    ] = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Read the test split at the end.")] = False,
    log: Logs = None,
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train an artefact once more, on validation images, too.

    With the same settings, from the same start, for as many epochs. The result has no validation accuracy; what can be
    expected of it is what the artefact reaches.
    """
    from zoo.networks.checkpoint import read_card
    from zoo.training.loop.distributed import join_world, others_alive
    from zoo.training.loop.logs import check_logs
    from zoo.training.loop.memory import enough_memory
    from zoo.training.refit import refit_run
    from zoo.training.stage import train as stage

    check_logs(log or ())
    run = refit_run(artefact, out, weights=weights, test=test)
    folder = out.parent if out is not None else output_root()
    with others_alive(), enough_memory(run.artefact, run.train):
        path = stage(run, folder, resume=resume, force=force, logs=log or ())
    if join_world().first:
        report([read_card(path)], [path], as_json)


@app.command(rich_help_panel=TRAIN)
def merge(
    artefact: Artefact,
    data: Data = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Read the test split as well.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Merge LoRA adapters into their network.

    Reads lora.safetensors and writes model.safetensors beside it.
    """
    from zoo.networks.checkpoint import read_card
    from zoo.training.stage import merge as stage

    source = artefact / UNMERGED if artefact.is_dir() else artefact
    if not source.is_file():
        raise ArtefactError(f"no unmerged checkpoint at {source}; a recipe with `lora` writes one")
    dataset = notes_of(source, data).data.open_for(read_card(source))
    path = stage(source, source.with_name(CHECKPOINT), dataset, force=force, test=test)
    report([read_card(path)], [path], as_json)
