"""The command that does everything from a folder of images to measured files: the verbs of other rooms, one by one."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path

from tqdm import tqdm

from bench.commands.measure import bench_accuracy, latency, list_artefacts
from compress.commands.chain import compress
from compress.commands.prune import why_not_prunable
from compress.commands.quantize import export
from zoo.base.commandline import TRAIN, AsJson, Force, Resume, app, short
from zoo.base.errors import UsageError
from zoo.base.files import GRAPH, INT8_GRAPH, PROJECT, output_root
from zoo.base.names import PRUNED
from zoo.base.progress import Chain, chain, note
from zoo.commands.runs import (
    AUTO,
    BatchSize,
    Data,
    Epochs,
    LabelColumn,
    Layout,
    LearningRate,
    Minutes,
    Model,
    Only,
    PathColumn,
    RecipeName,
    Settings,
    SplitColumn,
    Weights,
    chosen_runs,
    recipe_name,
    with_flags,
)
from zoo.commands.training import train

__all__ = ["run"]


@app.command(rich_help_panel=TRAIN)
def run(
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
    resume: Resume = True,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Train, compress, export, quantize and measure, then list.

    What `make train compress export table` does. What is up to date is not made again; --minutes is the budget of
    training alone. With --json each of these commands prints its own lines.
    """
    from zoo.training.loop.distributed import check_alone
    from zoo.training.recipe import said

    check_alone("run", "train with it, then run this command by itself: it goes on with what was trained")
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
    recipe = recipe_name(recipe, data, model)
    runs = chosen_runs(recipe, data, model, weights, settings, only, tell=False)
    if data and recipe == AUTO:
        # From here on the network that was chosen is a named one.
        model = runs[0].model
    names = [run.artefact for run in runs]
    note(
        f"{', '.join(names)}: trained, pruned, exported, quantized, measured. Minutes, as the recipe says: "
        f"{said(recipe, 'Minutes') or 'nothing'}"
    )
    models = [run for run in runs if run.role == "model"]
    pruned = [run.artefact for run in models if not (run.model and why_not_prunable(run))]

    def made() -> list[Path]:
        places = [output_root() / f"{name}{ending}" for name in names for ending in ("", PRUNED)]
        return [folder for folder in places if (folder / GRAPH).is_file()]

    steps: dict[str, Callable[[], None]] = {
        "train": lambda: train(
            recipe, data, model, weights, settings=settings, only=names, resume=resume, force=force, as_json=as_json
        ),
        "prune, and recover what that cost": lambda: compress(
            recipe, data, model, settings, pruned, resume=resume, force=force, as_json=as_json
        ),
        "export and quantize": lambda: export(
            None, recipe, True, data, model, settings, names, force=force, as_json=as_json
        ),
        "measure accuracy on test images": lambda: bench_accuracy(made(), missing=True, as_json=as_json),
        "measure latency, the files in turns": lambda: latency(made(), missing=True, as_json=as_json),
    }
    announced = step_minutes(recipe)
    if announced and len(announced) != len(steps):
        raise UsageError(f"{recipe}: # Steps: expected {len(steps)} numbers of minutes, got {announced}")
    _take(
        steps,
        announced,
        as_announced=not (data or model or weights or settings or only),
        skipped=() if pruned else (1,),
    )
    list_artefacts(as_json=as_json)
    there = made()
    of_models = [folder for folder in there if folder.name.removesuffix(PRUNED) in {run.artefact for run in models}]
    for line in next_steps(max(of_models or there, key=_validation)):
        note(line)


def step_minutes(recipe: str) -> list[float]:
    """How many minutes the steps took where a recipe was tried, as it says itself; empty: it does not."""
    from zoo.training.recipe import said

    return [float(number) for number in re.findall(r"(?:^|, )(\d+(?:\.\d+)?) ", said(recipe, "Steps"))]


def _take(
    steps: Mapping[str, Callable[[], None]], minutes: list[float], *, as_announced: bool, skipped: tuple[int, ...]
) -> None:
    """Take steps in turn; say before each what is over and what is left, and at the end what each took.

    Args:
        steps: by what they are called.
        minutes: of each where the recipe was tried; empty: unknown.
        as_announced: whether this is what was tried, so that its minutes count before a step has ended here.
        skipped: places of steps that are left out.
    """
    shares = [0.0 if place in skipped else share for place, share in enumerate(minutes or [1.0] * len(steps))]
    whole = Chain(shares, 60 * sum(shares) if minutes and as_announced else None)
    begin, took = time.monotonic(), []
    with chain(whole) if minutes else nullcontext():
        for place, (what, act) in enumerate(steps.items()):
            whole.begin()
            begun = time.monotonic()
            left = whole.left() if minutes else None
            told = "" if left is None else f", about {tqdm.format_interval(left)} left"
            if place not in skipped:
                note(f"[{place + 1}/{len(steps)}] {what}; {tqdm.format_interval(begun - begin)} so far{told}")
                act()
            took.append((time.monotonic() - begun) / 60)
    note(f"minutes of the steps: {', '.join(f'{spent:.1f}' for spent in took)}")


def _validation(artefact: Path) -> float:
    """Top-1 on validation data, by which the server chooses its default model, too."""
    from zoo.artefact.onnx_file import read_card

    metrics = read_card(artefact / GRAPH).metrics("validation")
    return metrics.top1 if metrics else 0.0


def next_steps(artefact: Path) -> list[str]:
    """What to do with a measured artefact, as commands.

    Args:
        artefact: its folder.
    """
    folder = shlex.quote(str(short(artefact)))
    file = shlex.quote(str(short(artefact / (INT8_GRAPH if (artefact / INT8_GRAPH).is_file() else GRAPH))))
    models = os.environ.get("POCKETZOO_OUTPUT")
    where = f"POCKETZOO_OUTPUT={shlex.quote(models)} " if models else ""
    # Without a name bentoml takes what the pyproject.toml of the working directory says, which a checkout has.
    service = "" if Path.cwd() == PROJECT else " serve.service:Classifier"
    return [
        "next:",
        f"  {where}bentoml serve{service}   # every artefact, and a page to try them at localhost:3000",
        f"  pocketzoo report {folder}   # all there is to know about this one, on one page",
        f"  pocketzoo score {file} path/to/images --out results   # predictions for many files",
    ]
