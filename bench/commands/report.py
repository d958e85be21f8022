"""The command that gives evidence: an artefact against what it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.base.commandline import LOOK, Artefact, AsJson, Engine, Rounds, Seconds, app, command_line, console, short
from zoo.base.files import write_bytes
from zoo.commands.image_set import Images, Split, pictures_of
from zoo.commands.runs import Data

__all__ = ["report"]


@app.command(rich_help_panel=LOOK)
def report(
    artefact: Artefact,
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Artefact to compare with. Default: what the lineage says it was made from."),
    ] = None,
    split: Split = "validation",
    data: Data = None,
    images: Images = None,
    threads: Annotated[int, typer.Option(help="Timed beside 1 thread; 0: all cores.")] = 0,
    rounds: Rounds = 5,
    seconds: Seconds = 0.3,
    engine: Engine = None,
    as_json: AsJson = False,
) -> None:
    """Write all there is to know of an artefact, on one page.

    Its ONNX files stand beside what they were made from.
    """
    from bench.report.compression_tables import busy_note, tables
    from bench.report.json_document import document
    from bench.report.measure import artefact_files, measure_report
    from bench.report.render import html, markdown
    from bench.report.sections import headline, pictures, sections
    from zoo.artefact.latency import LatencyConfig
    from zoo.artefact.onnx_file import read_card

    path = artefact_files(artefact)[0]
    asked = pictures_of(path, read_card(path), images=images, data=data, split=split)
    options: dict[str, Any] = {
        "--against": against,
        "--split": None if images else split,
        "--data": data,
        "--images": images,
    }
    options |= {"--threads": threads or None, "--rounds": rounds, "--seconds": seconds, "--engine": engine}
    done = measure_report(
        artefact,
        asked,
        against=against,
        latency=LatencyConfig(threads=threads, rounds=rounds, seconds=seconds, engine=engine),
        command=command_line(["report", str(artefact)], options),
    )
    values = document(done)
    parts = sections(done)
    write_bytes(path.with_name("report.json"), json.dumps(values, indent=2).encode())
    write_bytes(path.with_name("report.md"), markdown(done.artefact, parts).encode())
    page = path.with_name("report.html")
    write_bytes(page, html(done.artefact, headline(done), parts, pictures(done)).encode())
    if as_json:
        print(json.dumps(values))
        return
    print(f"{done.artefact}: {asked.name}, {split}, n = {len(asked.samples)}")
    for table in tables(done):
        print()
        console().print(table)
    busy = busy_note(done)
    for line in ("", *([busy] if busy else []), *done.remarks, short(page.resolve())):
        print(line)
