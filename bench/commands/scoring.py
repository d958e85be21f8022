"""The command that measures how fast many images are scored."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bench.commands.group import bench
from serve.commands.score import Batch, Threads, Workers
from zoo.base.commandline import Artefact, AsJson, Engine
from zoo.base.files import output_root

__all__ = ["bench_score"]


@bench.command(name="score")
def bench_score(
    artefact: Artefact,
    source: Annotated[str, typer.Argument(help="Folder or glob in quotes; half a minute of images or more.")],
    rounds: Annotated[int, typer.Option(help="Turns of scoring and of every reference.")] = 5,
    workers: Workers = 0,
    threads: Threads = 1,
    batch: Batch = 16,
    names: Annotated[
        int | None, typer.Option(help="Instead: the first image, and memory, where the folder had so many entries.")
    ] = None,
    engine: Engine = None,
    as_json: AsJson = False,
) -> None:
    """Compare bulk scoring with loops that do nothing else.

    Images per second of reading, decoding and inference, and the ratio. With --names, no comparison: when the first
    image of a huge folder, which is simulated, is scored, and the memory until all of it is listed.
    """
    from bench.rows import LISTING, SCORE, append
    from bench.scoring import SpeedConfig, measure_speed

    if names is not None:
        from bench.listing import ListingConfig, measure_listing

        listing = ListingConfig(
            artefact=artefact,
            source=source,
            names=names,
            workers=workers,
            threads=threads,
            batch=batch,
            engine=engine,
        )
        row = measure_listing(listing)
        append(output_root() / "bench" / LISTING, [row])
        if as_json:
            print(json.dumps(row))
            return
        print(
            f"{names:,} names: first image after {row['first_seconds']:.1f} s, all listed after "
            f"{row['listed_seconds']:.0f} s, {row['n']:,} images scored by then"
        )
        memory = ", ".join(f"{mb:.0f}" for mb in row["peak_mb"])
        print(f"peak memory, MB, at the first image and after each tenth: {memory}")
        return
    row = measure_speed(
        SpeedConfig(
            artefact=artefact,
            source=source,
            rounds=rounds,
            workers=workers,
            threads=threads,
            batch=batch,
            engine=engine,
        )
    )
    append(output_root() / "bench" / SCORE, [row])
    if as_json:
        print(json.dumps(row))
        return
    spread = "" if row["ratio_low"] is None else f" ({row['ratio_low']:.1%} to {row['ratio_high']:.1%})"
    others = ", ".join(f"{way} {rate:,.1f}" for way, rate in row["references"].items())
    print(
        f"{row['artefact']}/{row['file']}: {row['images_per_s']:,.1f} images/s with {row['workers']} workers, "
        f"{row['ratio']:.1%}{spread} of the fastest loop of {rounds} rounds"
    )
    print(f"loops, images/s: {others}")
