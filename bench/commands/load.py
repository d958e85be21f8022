"""The command that measures a running server under load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.group import bench
from zoo.base.commandline import AsJson, console, short
from zoo.base.files import output_root

__all__ = ["load"]


@bench.command()
def load(
    url: Annotated[str, typer.Argument(help="Of the running server.")] = "http://127.0.0.1:3000",
    model: Annotated[
        str | None, typer.Option("--model", help="By name; default: the one that the server answers with.")
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            help="Image file, or folder of images, sent in turn; default: a photograph of scikit-learn. Repeatable.",
            show_default=False,
        ),
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(help="single-stream, multi-stream, offline, server, or all. Repeatable.", show_default="all"),
    ] = None,
    p99: Annotated[float, typer.Option("--p99", help="Bound of the scenario server, milliseconds.")] = 50.0,
    seconds: Annotated[float, typer.Option(help="Each scenario takes at least so long.")] = 10.0,
    queries: Annotated[int, typer.Option(help="At least, in each scenario.")] = 100,
    streams: Annotated[int, typer.Option(help="Images of a query of the scenario multi-stream.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the Poisson arrivals.")] = 0,
    key: Annotated[str | None, typer.Option(envvar="POCKETZOO_KEY", help="API key, if the server wants one.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG of the percentiles and of the search; default: load.png beside the rows.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a running server in MLPerf's scenarios.

    Single stream, multi-stream, offline, and server (Poisson).
    """
    from bench.load.images import images_of
    from bench.load.plot import draw_load
    from bench.load.scenarios import SCENARIOS, LoadConfig, measure
    from bench.load.server_under_test import parse_url
    from bench.load.tables import facts, render
    from bench.rows import LOAD, append
    from zoo.base.progress import note

    chosen = tuple(scenario or ("all",))
    config = LoadConfig(
        scenarios=SCENARIOS if "all" in chosen else chosen,
        p99_ms=p99,
        seconds=seconds,
        queries=queries,
        streams=streams,
        seed=seed,
        warmup=min(1.0, seconds / 10),
    )
    target = parse_url(url, model=model, key=key)
    folder = output_root() / "bench"
    rows = []
    try:
        for row in measure(target, images_of(image or ()), config):
            append(folder / LOAD, [row])
            rows.append(row)
            if as_json:
                print(json.dumps(row))
    finally:
        # What was measured before the server went away, or before Ctrl-C, is shown too.
        if rows:
            picture = out or folder / "load.png"
            draw_load(rows, picture)
            if not as_json:
                console().print(render(rows))
                for fact in facts(rows):
                    print(fact)
            note(f"{short(picture.resolve())}, {short(folder / LOAD)}")
