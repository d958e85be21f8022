"""The command that keeps measured rows with the code and makes the documents' tables from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.group import bench
from zoo.base.commandline import short
from zoo.base.files import output_root

__all__ = ["DOCUMENTS", "publish"]

DOCUMENTS = [
    Path("README.md"),
    Path("docs/benchmarks.md"),
    Path("docs/tutorials/lora.md"),
    Path("docs/guides/training.md"),
    Path("zoo/recipes/README.md"),
]


@bench.command()
def publish(
    results: Annotated[Path, typer.Option(help="Folder of the kept rows.")] = Path("bench/results"),
    document: Annotated[
        list[Path] | None,
        typer.Option(help="Markdown file with tables. Repeatable. Default: those of this repository that have some."),
    ] = None,
) -> None:
    """Keep the latest rows, and make the documents' tables of them.

    From output/bench, and of an ablation from its checkpoints; draws the Pareto front as well.
    """
    from bench.publish import publish as keep

    for path in keep(output_root(), results, document or DOCUMENTS):
        print(short(path))
