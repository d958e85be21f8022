"""The command that scores many pictures at once, and the one that measures how fast it does."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from zoo.base.commandline import Artefact, AsJson, Force, app, bench
from zoo.base.files import output_root
from zoo.base.progress import note

__all__ = ["score"]

Pictures = Annotated[str, typer.Argument(help="Folder, glob in quotes, picture, or Parquet file.")]
Workers = Annotated[int, typer.Option(help="Processes; 0: as many as the cores allow.")]
Threads = Annotated[int, typer.Option(help="Of one inference, in each process.")]
Batch = Annotated[int, typer.Option(help="Pictures of one inference.")]


@app.command()
def score(
    artefact: Artefact,
    source: Pictures,
    out: Annotated[Path, typer.Option(help="The result, a .parquet file.")],
    engine: Annotated[
        str, typer.Option(help="embedded: processes here; ray: RAY_ADDRESS, else a cluster here.")
    ] = "embedded",
    workers: Workers = 0,
    threads: Threads = 1,
    batch: Batch = 16,
    top: Annotated[int, typer.Option(help="Labels per picture.")] = 5,
    column: Annotated[str | None, typer.Option(help="Column of the Parquet file with pictures or their paths.")] = None,
    key: Annotated[str | None, typer.Option(help="Column of the Parquet file that names the pictures.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Classify every picture of a folder, glob or Parquet file into one Parquet file; continues where it stopped."""
    from serve.bulk.run import ScoreConfig
    from serve.bulk.run import score as run

    report = run(
        ScoreConfig(
            artefact=artefact,
            source=source,
            out=out,
            engine=engine,
            workers=workers,
            threads=threads,
            batch=batch,
            top=top,
            column=column,
            key=key,
            force=force,
            command=shlex.join(["pocketzoo", *sys.argv[1:]]),
        )
    )
    if as_json:
        print(json.dumps(dataclasses.asdict(report), default=str))
        return
    print(f"{out}: {report.images:,} pictures, {report.errors:,} of them without an answer")
    for example in report.examples:
        note(f"no answer: {example}")
    if report.memory:
        (here, there), (here_last, there_last) = report.memory[0], report.memory[-1]
        start = report.start_seconds
        ready = "start included" if start is None else f"ready after {start:.1f} s"
        print(
            f"{report.scored:,} in {report.seconds:.1f} s, {report.images_per_s:,.1f} pictures/s, {report.workers} "
            f"workers ({ready})"
        )
        print(
            f"peak memory after a tenth and at the end: {here / 1e6:.0f} and {here_last / 1e6:.0f} MB here, "
            f"{there / 1e6:.0f} and {there_last / 1e6:.0f} MB in a worker"
        )


@bench.command(name="score")
def bench_score(
    artefact: Artefact,
    source: Annotated[str, typer.Argument(help="Folder or glob in quotes; half a minute of pictures or more.")],
    rounds: Annotated[int, typer.Option(help="Turns of scoring and of every reference.")] = 5,
    workers: Workers = 0,
    threads: Threads = 1,
    batch: Batch = 16,
    as_json: AsJson = False,
) -> None:
    """Compare bulk scoring with loops that only read, decode and infer: pictures/s, and the ratio."""
    from bench.rows import SCORE, append
    from bench.scoring import SpeedConfig, measure_speed

    row = measure_speed(
        SpeedConfig(artefact=artefact, source=source, rounds=rounds, workers=workers, threads=threads, batch=batch)
    )
    append(output_root() / "bench" / SCORE, [row])
    if as_json:
        print(json.dumps(row))
        return
    spread = "" if row["ratio_low"] is None else f" ({row['ratio_low']:.1%} to {row['ratio_high']:.1%})"
    others = ", ".join(f"{way} {rate:,.1f}" for way, rate in row["references"].items())
    print(
        f"{row['artefact']}/{row['file']}: {row['images_per_s']:,.1f} pictures/s with {row['workers']} workers, "
        f"{row['ratio']:.1%}{spread} of the fastest loop of {rounds} rounds"
    )
    print(f"loops, pictures/s: {others}")
