"""The group of commands that measure."""

from __future__ import annotations

import typer

from zoo.base.commandline import MEASURE, app

__all__ = ["bench"]

bench = typer.Typer(help="Measure accuracy, latency, the server and training.", no_args_is_help=True)
app.add_typer(bench, name="bench", rich_help_panel=MEASURE)
