"""The command that compares the server with the same pipeline in process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.group import bench
from zoo.base.commandline import Artefact, AsJson, Engine, console
from zoo.base.files import graph_paths, output_root

__all__ = ["serving"]


@bench.command()
def serving(
    artefact: Artefact,
    image: Annotated[
        Path | None, typer.Option(help="JPEG file to send; default: a photograph of scikit-learn, 640 x 427 pixels.")
    ] = None,
    connections: Annotated[int, typer.Option(help="Of the closed loops; each also runs with one.")] = 8,
    rounds: Annotated[int, typer.Option(help="Turns of every way in and every reference.")] = 5,
    seconds: Annotated[float, typer.Option(help="Measured time of a turn.")] = 2.0,
    open_seconds: Annotated[float, typer.Option(help="Of the loads at 30 % and 70 % of the capacity; 0: none.")] = 30.0,
    overload_seconds: Annotated[float, typer.Option(help="Of the load at three times the capacity; 0: none.")] = 60.0,
    engine: Engine = None,
    as_json: AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
) -> None:
    """Compare `bentoml serve` with its pipeline in process.

    Of one artefact: its INT8 file if there is one.
    """
    from bench.load.images import default_image
    from bench.rows import SERVING, append
    from bench.serving.measure import ServingConfig, measure
    from bench.serving.tables import facts, markdown, render

    config = ServingConfig(
        image=image or default_image(),
        connections=connections,
        rounds=rounds,
        seconds=seconds,
        open_seconds=open_seconds,
        overload_seconds=overload_seconds,
        engine=engine,
    )
    rows = measure(graph_paths(artefact)[-1], config)
    append(output_root() / "bench" / SERVING, rows)
    if as_json:
        for row in rows:
            print(json.dumps(row))
    elif as_markdown:
        print(markdown(rows))
    else:
        console().print(render(rows))
        for fact in facts(rows):
            print(fact)
