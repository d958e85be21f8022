"""The command that measures how long the server takes to start."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bench.commands.group import bench
from zoo.base.commandline import Artefact, AsJson
from zoo.base.files import graph_paths, output_root

__all__ = ["start"]


@bench.command()
def start(
    artefact: Artefact,
    rounds: Annotated[int, typer.Option(help="Starts of each case.")] = 3,
    many: Annotated[
        int, typer.Option(help="Large artefacts of the second case, made of random weights; 0: none.")
    ] = 20,
    megabytes: Annotated[float, typer.Option(help="Of each of those.")] = 100.0,
    as_json: AsJson = False,
) -> None:
    """Time `bentoml serve` until it is ready and has predicted.

    With one artefact (its INT8 file if there is one), and with many large ones; and its processes' memory.
    """
    from bench.rows import START, append
    from bench.serving.start import StartConfig, markdown, measure

    rows = measure(graph_paths(artefact)[-1], StartConfig(rounds=rounds, many=many, megabytes=megabytes))
    append(output_root() / "bench" / START, rows)
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(markdown(rows))
