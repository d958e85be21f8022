"""Commands that train: recipes to checkpoints."""

from __future__ import annotations

import contextlib
from typing import Annotated, Any

import typer

from zoo.base.commandline import (
    Artefact,
    AsJson,
    Data,
    Force,
    Model,
    Only,
    RecipeName,
    Resume,
    Settings,
    Weights,
    app,
    chosen_runs,
    compare,
    console,
    notes_of,
    report,
)
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, UNMERGED, output_root
from zoo.base.progress import note


@app.command()
def train(
    recipe: RecipeName = "quickstart",
    data: Data = None,
    model: Model = None,
    weights: Weights = None,
    settings: Settings = None,
    only: Only = None,
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train the checkpoints of a recipe: output/NAME/model.safetensors."""
    from zoo.networks.checkpoint import read_card
    from zoo.training.loop.distributed import join_world, others_alive
    from zoo.training.stage import train as stage
    from zoo.validate import write_state_dicts

    chosen = chosen_runs(recipe, data, model, weights, settings, only)
    for run in chosen:
        if run.role == "model" and run.model and not (output_root() / run.artefact / CHECKPOINT).is_file():
            _tell_if_not_prunable(run)
    with others_alive():
        paths = [stage(run, output_root(), resume=resume, force=force) for run in chosen]
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


def _tell_if_not_prunable(run: Any) -> None:
    """Say before hours of training what `pocketzoo compress` would refuse after them."""
    from compress.prune.stage import prunable
    from zoo.networks.registry import build, input_for

    spec = input_for(run.model, colour="RGB", size=run.size, photographs=True, arguments=run.arguments)
    network = build(run.model, classes=2, channels=spec.channels, arguments=run.arguments)
    try:
        prunable(network, spec)
    except ArtefactError as error:
        note(f"{run.artefact} can be trained and exported, but not pruned: {error}")


@app.command()
def merge(
    artefact: Artefact,
    data: Data = None,
    test: Annotated[bool, typer.Option("--test/--no-test", help="Read the test split as well.")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Merge the LoRA adapters of lora.safetensors into model.safetensors."""
    from zoo.networks.checkpoint import read_card
    from zoo.training.stage import merge as stage

    source = artefact / UNMERGED if artefact.is_dir() else artefact
    if not source.is_file():
        raise ArtefactError(f"no unmerged checkpoint at {source}; a recipe with `lora` writes one")
    dataset = notes_of(source, data).data.open_for(read_card(source))
    path = stage(source, source.with_name(CHECKPOINT), dataset, force=force, test=test)
    report([read_card(path)], [path], as_json)
