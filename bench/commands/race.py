"""The command that races whole training programs against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.group import bench
from zoo.base.commandline import AsJson, console, short
from zoo.base.files import output_root
from zoo.base.progress import note

__all__ = ["race"]


@bench.command()
def race(
    data: Annotated[str, typer.Argument(help="Folder of photographs, list of them, or a name of `pocketzoo data`.")],
    model: Annotated[str, typer.Option(help="Architecture of timm's.")] = "tf_efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="First weights of all: pretrained, or a file.")] = "pretrained",
    minutes: Annotated[
        float | None,
        typer.Option(
            help="Each one's budget. Ours plans its epochs; a peer's, unless --epochs has them, are those that two "
            "epochs promise, which are run before and not counted.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        list[str] | None,
        typer.Option(
            help="CONTESTANT=NUMBER: pocketzoo=8, timm=6, fastai=7 (one of them with a frozen body). Repeatable.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="Of pocketzoo. Default: what `pocketzoo train --data` takes.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of pocketzoo's recipe. Repeatable.")
    ] = None,
    timm_train: Annotated[
        Path | None,
        typer.Option(
            help="train.py of a checkout of timm, of about the installed version. Default: timm is left out.",
            show_default=False,
        ),
    ] = None,
    timm_args: Annotated[
        str, typer.Option(help="Options of train.py that win over those chosen here, like '--lr 5e-4 --reprob 0.25'.")
    ] = "",
    fastai_args: Annotated[
        str, typer.Option(help="Arguments of fine_tune, like 'base_lr=0.004 freeze_epochs=2'.")
    ] = "",
    without: Annotated[
        list[str] | None, typer.Option(help="Contestant that stays away: timm, fastai, pocketzoo. Repeatable.")
    ] = None,
    image_size: Annotated[int, typer.Option(help="Of the input, in pixels, both ways.")] = 224,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 32,
    threads: Annotated[int, typer.Option(help="Of each, and loader processes of the peers; 0: all cores.")] = 0,
    rounds: Annotated[int, typer.Option(help="Processes per contestant, each with another seed; they take turns.")] = 1,
    allocator: Annotated[
        str,
        typer.Option(
            help="kept: all keep the memory that they free, as pocketzoo's commands do; plain: each as it comes."
        ),
    ] = "kept",
    out: Annotated[
        Path | None, typer.Option(help="PNG of accuracy over time; default: race.png beside the rows.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Race pocketzoo, timm's train script and fastai on your photographs.

    Validation accuracy over seconds since each process began.
    """
    from bench.rows import RACE, append
    from bench.training.race import RaceConfig, run_race
    from bench.training.race_results import draw_race, render
    from zoo.base.errors import UsageError
    from zoo.data.catalogue import open_dataset

    planned = {}
    for word in epochs or ():
        name, _, number = word.partition("=")
        if not number.isdecimal():
            raise UsageError(f"--epochs {word!r}: expected CONTESTANT=NUMBER, like timm=6")
        planned[name] = int(number)
    config = RaceConfig(
        model=model,
        weights=weights,
        recipe=recipe,
        settings=tuple(settings or ()),
        minutes=minutes,
        epochs=planned,
        size=image_size,
        batch=batch,
        threads=threads,
        rounds=rounds,
        allocator=allocator,
        timm_train=timm_train,
        timm_args=timm_args,
        fastai_args=fastai_args,
        without=tuple(without or ()),
    )
    folder = output_root() / "bench"
    rows = []
    try:
        for row in run_race(open_dataset(data), data, config):
            append(folder / RACE, [row])
            rows.append(row)
            if as_json:
                print(json.dumps(row))
    finally:
        # Who came to the end before Ctrl-C is shown, too.
        if rows:
            picture = out or folder / "race.png"
            draw_race(rows, picture)
            if not as_json:
                console().print(render(rows))
            note(f"{short(picture.resolve())}, {short(folder / RACE)}")
