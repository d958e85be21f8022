"""The command that scores many images at once."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from typing import Annotated

import typer

from zoo.base.commandline import SERVE, Artefact, AsJson, Engine, Force, app
from zoo.base.progress import note

__all__ = ["score"]

Pictures = Annotated[str, typer.Argument(help="Folder, glob in quotes, image, Parquet file, tar shard; or a URL.")]
Workers = Annotated[int, typer.Option(help="Processes; 0: as many as the cores allow.")]
Threads = Annotated[int, typer.Option(help="Of one inference, in each process.")]
Batch = Annotated[int, typer.Option(help="Images of one inference.")]


@app.command(rich_help_panel=SERVE)
def score(
    artefact: Artefact,
    source: Pictures,
    out: Annotated[str, typer.Option(help="The result: a folder, or a URL, of Parquet files.")],
    executor: Annotated[
        str, typer.Option(help="embedded: processes here; ray: RAY_ADDRESS, else a cluster here.")
    ] = "embedded",
    engine: Engine = None,
    workers: Workers = 0,
    threads: Threads = 1,
    batch: Batch = 16,
    top: Annotated[int, typer.Option(help="Labels per image.")] = 5,
    partition: Annotated[int, typer.Option(help="Images of one file of the result.")] = 4096,
    column: Annotated[str | None, typer.Option(help="Column of the Parquet file with images or their paths.")] = None,
    key: Annotated[str | None, typer.Option(help="Column of the Parquet file that names the images.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Classify many images into Parquet files.

    Of a folder, a glob, Parquet files or tar shards, here or on an object store; continues where it stopped.
    """
    from serve.bulk.score import ScoreConfig
    from serve.bulk.score import score as run

    report = run(
        ScoreConfig(
            artefact=artefact,
            source=source,
            out=out,
            executor=executor,
            engine=engine,
            workers=workers,
            threads=threads,
            batch=batch,
            top=top,
            partition=partition,
            column=column,
            key=key,
            force=force,
            command=shlex.join(["pocketzoo", *sys.argv[1:]]),
        )
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(report), default=str))
        return
    print(f"{out}: {report.images:,} images, {report.errors:,} of them without an answer")
    for example in report.examples:
        note(f"no answer: {example}")
    if report.passed_over:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report.passed_over.items()))
        note(f"not scored: {reasons}")
    if report.memory:
        (here, there), (here_last, there_last) = report.memory[0], report.memory[-1]
        start = report.start_seconds
        ready = "start included" if start is None else f"ready after {start:.1f} s"
        print(
            f"{report.scored:,} in {report.seconds:.1f} s, {report.images_per_s:,.1f} images/s, {report.workers} "
            f"workers ({ready})"
        )
        print(
            f"peak memory after the first part and at the end: {here / 1e6:.0f} and {here_last / 1e6:.0f} MB here, "
            f"{there / 1e6:.0f} and {there_last / 1e6:.0f} MB in a worker"
        )
