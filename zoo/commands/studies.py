"""Commands that look for good settings before or over many trainings."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from zoo.base.commandline import PREPARE, AsJson, app, console
from zoo.base.errors import UsageError
from zoo.base.files import output_root, write_bytes
from zoo.base.size import SIZE_HELP, parse_size
from zoo.commands.runs import (
    BatchSize,
    Data,
    Epochs,
    Model,
    Only,
    RecipeName,
    Settings,
    Weights,
    all_runs,
    chosen_runs,
    only_these,
    with_flags,
)

__all__ = ["advise", "lr_find", "probe", "sweep"]

DataArgument = Annotated[str, typer.Argument(help="Folder of images, or the name of a data set (`pocketzoo data`).")]
ModelName = Annotated[str, typer.Option("--model", help="Architecture: lenet, or any timm name.")]
FirstWeights = Annotated[str, typer.Option("--weights", help="Weights: pretrained, none, or a file (FILE#KEY).")]
Size = Annotated[str | None, typer.Option("--size", help=f"{SIZE_HELP}; default: what the network was trained with.")]
PerSplit = Annotated[int | None, typer.Option("--images-per-split", help="Use at most so many images of each split.")]


@app.command(rich_help_panel=PREPARE)
def probe(
    data: DataArgument,
    model: ModelName,
    weights: FirstWeights = "pretrained",
    layers: Annotated[
        list[str] | None,
        typer.Option("--layer", help="Layer to probe (blocks.3, layer2); default: before the classifier. Repeatable."),
    ] = None,
    classifiers: Annotated[
        list[str] | None, typer.Option("--classifier", help="logistic (default) or svm. Repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the best one as a checkpoint.")] = None,
    size: Size = None,
    images_per_split: PerSplit = None,
    as_json: AsJson = False,
) -> None:
    """Train linear classifiers on frozen features, in seconds.

    One for each named layer of the network.
    """
    from zoo.studies.probe import probe as stage
    from zoo.studies.probe import write_probe

    run = _named_run(data, model, weights, size, images_per_split)
    dataset, network, card = _network(run)
    found = stage(
        dataset,
        network,
        card.use.input,
        layers=list(dict.fromkeys(layers or [""])),
        classifiers=classifiers or ["logistic"],
    )
    best = max(found, key=lambda entry: entry.validation.top1)
    written = write_probe(run, dataset, network, card, best, out) if out else None
    rows = [
        {
            "layer": entry.layer,
            "dim": entry.dim,
            "classifier": entry.classifier,
            "strength": entry.strength,
            "validation": dataclasses.asdict(entry.validation),
            "seconds": round(entry.seconds, 2),
        }
        for entry in found
    ]
    if as_json:
        print(json.dumps({"probes": rows, "best": found.index(best), "path": str(written) if written else None}))
        return
    table = Table("layer", "features", "classifier", "C", "validation top-1", "95 % interval", "seconds")
    for entry in found:
        metrics = entry.validation
        table.add_row(
            entry.layer or "(before the classifier)",
            str(entry.dim),
            entry.classifier,
            f"{entry.strength:g}",
            f"{metrics.top1:.2%}",
            f"{metrics.low:.1%} to {metrics.high:.1%}",
            f"{entry.seconds:.1f}",
        )
    console().print(table)
    if written:
        from zoo.networks.checkpoint import read_card

        test = read_card(written).metrics("test")
        assert test is not None
        print(f"{written}: {best.layer or 'before the classifier'}, {best.classifier}; ", end="")
        print(f"test top-1 {test.top1:.2%} (n = {test.n})")


@app.command(rich_help_panel=PREPARE)
def advise(
    data: DataArgument,
    model: ModelName,
    weights: FirstWeights = "pretrained",
    size: Size = None,
    images_per_split: PerSplit = None,
    as_json: AsJson = False,
) -> None:
    """Measure which training fits data and weights; write a recipe.

    Compared are: classifier only, last stages, LoRA, everything, and training from scratch.
    """
    from zoo.studies.advise import advise as measure_and_decide
    from zoo.studies.advise import recipe_of

    run = _named_run(data, model, weights, size, images_per_split)
    dataset, network, card = _network(run)
    run = dataclasses.replace(run, data=dataset.location or run.data)
    facts, advice = measure_and_decide(dataset, network, card.use.input, run)
    path = output_root() / "advice" / f"{advice.run.name}.toml"
    command = f"pocketzoo train --recipe {path}"
    write_bytes(path, recipe_of(advice, facts, command=command))
    if as_json:
        shown = {key: getattr(advice, key) for key in ("strategy", "size", "similarity", "reasons", "warnings")}
        print(json.dumps(shown | {"facts": dataclasses.asdict(facts), "recipe": str(path)}))
        return
    table = Table("measured", "value")
    for name, value in (
        ("training images", f"{facts.images}"),
        ("of a class: fewest, median, most", f"{facts.per_class[0]}, {facts.per_class[1]:g}, {facts.per_class[2]}"),
        ("chance (validation)", f"{facts.chance:.1%} of {facts.probe.n}"),
        ("neighbours in pixels", f"{facts.pixels.top1:.1%}"),
        ("neighbours in frozen features", f"{facts.neighbours.top1:.1%}"),
        ("logistic regression on them", f"{facts.probe.top1:.1%}"),
    ):
        table.add_row(name, value)
    console().print(table)
    for line in advice.reasons:
        print(f"- {line}")
    for line in advice.warnings:
        print(f"! {line}")
    print(f"advice: {advice.strategy}; {command}")


@app.command(name="lr-find", rich_help_panel=PREPARE)
def lr_find(
    recipe: RecipeName = None,
    only: Only = None,
    data: Data = None,
    model: Model = None,
    weights: Weights = None,
    batch_size: BatchSize = None,
    settings: Settings = None,
    low: Annotated[float, typer.Option(help="First learning rate.")] = 1e-7,
    high: Annotated[float, typer.Option(help="Last learning rate.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Batches from the first to the last rate.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Suggest a learning rate by raising it step by step.

    The curve is drawn in output/NAME/lr-find.png.
    """
    from zoo.studies.lr_finder import RangeTest, draw, find_rate, suggest
    from zoo.training.stage import parent_of, source_of

    settings = with_flags(settings, batch_size=batch_size)
    run = _single_run(chosen_runs(recipe, data, model, weights, settings, only))
    curve = find_rate(
        run, source_of(run).open(), parent_of(run, output_root()), RangeTest(low=low, high=high, steps=steps)
    )
    found = suggest(curve)
    path = output_root() / run.artefact / "lr-find.png"
    draw(curve, found, path, title=f"{run.artefact}: learning-rate range test", current=run.train.lr)
    if as_json:
        print(json.dumps(dataclasses.asdict(found) | {"picture": str(path), "curve": dataclasses.asdict(curve)}))
        return
    table = Table("suggestion", "train.lr", "meaning")
    table.add_row("steepest", f"{found.steepest:.2g}", "the loss falls fastest here")
    table.add_row("valley", f"{found.valley:.2g}", "middle of the longest fall; the safest start")
    table.add_row("minimum / 10", f"{found.minimum_tenth:.2g}", "a tenth of where the loss is lowest")
    table.add_row("recipe", f"{run.train.lr:.2g}", "what it has now")
    console().print(table)
    print(f"{path}; try --set train.lr={found.valley:.2g}")


@app.command(rich_help_panel=PREPARE)
def sweep(
    recipe: RecipeName = None,
    search: Annotated[str, typer.Option(help="Name in zoo/recipes/search, or path of a TOML file.")] = "finetune",
    trials: Annotated[int, typer.Option(help="Trials of the whole study, finished or pruned.")] = 20,
    minutes: Annotated[float | None, typer.Option(help="Begin no trial after so many; default: no limit.")] = None,
    study: Annotated[str | None, typer.Option(help="Name under output/sweeps; default: the run's name.")] = None,
    pruner: Annotated[str, typer.Option(help="How hopeless trials are stopped: median, hyperband or none.")] = "median",
    seed: Annotated[int, typer.Option(help="Seed of the search; training keeps its own.")] = 0,
    only: Only = None,
    data: Data = None,
    model: Model = None,
    weights: Weights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Search settings of a run by validation accuracy.

    The same command continues a search, also in several shells at once.
    """
    from zoo.studies.sweep import SweepConfig
    from zoo.studies.sweep import sweep as stage
    from zoo.studies.sweep_space import read_search

    settings = with_flags(settings, epochs=epochs, batch_size=batch_size)
    everything = all_runs(recipe, data, model, weights, settings)
    run = _single_run(only_these(everything, only))
    space = read_search(search)
    for flag, key, value in (("--epochs", "train.epochs", epochs), ("--batch-size", "train.batch_size", batch_size)):
        if value is not None and key in space:
            raise UsageError(f"{flag} {value} would have no effect, as --search {search} varies {key}; leave it out")
    name = study or run.artefact
    if Path(name).name != name or name in ("", ".", ".."):
        raise UsageError(f"--study is the name of a folder under output/sweeps, got {name!r}")
    config = SweepConfig(trials=trials, minutes=minutes, pruner=pruner, seed=seed)
    folder = output_root() / "sweeps" / name
    found = stage(everything, run, space, folder, config, start=output_root())
    if as_json:
        print(json.dumps(dataclasses.asdict(found), default=str))
        return
    table = Table("key", "best", "importance", "correlation", "p", "n")
    for entry in found.correlations:
        table.add_row(
            entry.key,
            _short(found.best_settings[entry.key]),
            "-" if entry.importance is None else f"{entry.importance:.2f}",
            "-" if entry.spearman is None else f"{entry.spearman:+.2f}",
            "-" if entry.p is None else f"{entry.p:.2g}",
            str(entry.n),
        )
    console().print(table)
    states = ", ".join(f"{count} {state}" for state, count in found.states.items())
    print(f"best: trial {found.best_trial}, validation top-1 {found.best_value:.2%} ({states})")
    print(f"{found.folder}; pocketzoo train --recipe {found.recipe}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _single_run(runs: list[Any]) -> Any:
    if len(runs) != 1:
        names = ", ".join(run.artefact for run in runs)
        raise UsageError(f"the recipe has {len(runs)} runs; choose one with --only: {names}")
    return runs[0]


def _named_run(data: str, model: str, weights: str, size: str | None, images_per_split: int | None) -> Any:
    from zoo.networks.weights.first_weights import absolute_weights
    from zoo.training.recipe import Run

    # A relative path means something else in another working directory.
    weights = absolute_weights(weights)
    parsed = None if size is None else parse_size(size)
    return Run(data=data, model=model, weights=weights, size=parsed, images_per_split=images_per_split)


def _network(run: Any) -> tuple[Any, Any, Any]:
    """Data, network and card of a run, before any training."""
    from zoo.training.stage import source_of, starting_point

    dataset = source_of(run).open()
    model, card = starting_point(run, dataset, None)
    return dataset, model.eval(), card
