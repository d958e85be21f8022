"""Commands that measure accuracy and latency, and the table of what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.commands.group import bench
from zoo.base.commandline import LOOK, Artefacts, AsJson, Engine, app, console
from zoo.base.errors import ArtefactError
from zoo.base.files import graph_paths, output_root
from zoo.base.progress import note


@app.command(name="list", rich_help_panel=LOOK)
def list_artefacts(as_json: AsJson = False) -> None:
    """Print the table of artefacts and their measurements."""
    from bench.artefact_table import collect, render

    lines = collect(output_root())
    if not lines:
        raise ArtefactError(f"no exported artefacts under {output_root()}; run `make train compress export`")
    if as_json:
        for line in lines:
            print(
                json.dumps(
                    {"artefact": line.name, "role": line.role, "accuracy": line.accuracy, "latency": line.latency}
                )
            )
        return
    console().print(render(lines))


@bench.command()
def latency(
    artefacts: Artefacts = None,
    batch: Annotated[int, typer.Option(help="Images per inference.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads per inference; 0: all cores.")] = 0,
    rounds: Annotated[int, typer.Option(help="Processes per artefact; they take turns.")] = 5,
    seconds: Annotated[float, typer.Option(help="Measured time per process.")] = 0.3,
    engine: Engine = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only if an artefact was not measured yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the latency of artefacts; default: all.

    In alternating processes, one session alive at a time.
    """
    from bench.artefact_table import graphs, unmeasured
    from bench.latency import measure_latency
    from bench.rows import LATENCY, append
    from zoo.artefact.latency import LatencyConfig

    paths = [path for artefact in artefacts for path in graph_paths(artefact)] if artefacts else graphs(output_root())
    if missing:
        # Latencies are compared with each other: where one is missing, all are measured again, side by side.
        lacking = unmeasured(output_root())[1]
        paths = lacking if not artefacts or _same(paths, lacking) else []
    rows = (
        measure_latency(
            paths, LatencyConfig(batch=batch, threads=threads, rounds=rounds, seconds=seconds, engine=engine)
        )
        if paths
        else []
    )
    append(output_root() / "bench" / LATENCY, rows)
    for row in rows:
        times = ", ".join(f"{key[:3]} {row[key]:.3f} ms" for key in ("p50_ms", "p95_ms", "p99_ms"))
        text = f"{row['artefact']}/{row['file']}: {times}, n = {row['n']} ({row['engine_reason']})"
        print(json.dumps(row) if as_json else text)


@bench.command(name="accuracy")
def bench_accuracy(
    artefacts: Artefacts = None,
    engine: Engine = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only artefacts that were not measured yet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy on test data; default: all artefacts."""
    from bench.accuracy import measure_accuracy
    from bench.artefact_table import graphs, unmeasured
    from bench.rows import ACCURACY, append
    from zoo.artefact.onnx_file import read_card
    from zoo.training.workspace import read_notes, without_data

    paths = [path for artefact in artefacts for path in graph_paths(artefact)] if artefacts else graphs(output_root())
    if missing:
        lacking = unmeasured(output_root())[0]
        paths = [path for path in lacking if not artefacts or _same(paths, [path])]
    for path in paths:
        card = read_card(path)
        if without_data(path.parent, card):
            reason = (
                f"{path}: imported, no data set belongs to it; `pocketzoo evaluate {path} --data FOLDER` measures it"
            )
            if artefacts:
                raise ArtefactError(reason)
            note(reason)
            continue
        row = measure_accuracy(path, read_notes(path.parent).test.open_for(card), engine=engine)
        append(output_root() / "bench" / ACCURACY, [row])
        text = _accuracy_text(row)
        print(json.dumps(row) if as_json else text)


def _same(paths: list[Path], others: list[Path]) -> bool:
    """Whether one of some files is among others."""
    return bool({path.resolve() for path in paths} & {path.resolve() for path in others})


def _accuracy_text(row: dict[str, Any]) -> str:
    interval = f"{row['low']:.2%} to {row['high']:.2%}"
    top1 = f"{row['split']} top-1 {row['top1']:.2%} ({interval}), n = {row['n']}"
    return f"{row['artefact']}/{row['file']}: {top1} ({row['engine_reason']})"
