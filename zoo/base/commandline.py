"""What every command shares: the typer application, its panels, the options, and the ways of reporting."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

__all__ = [
    "COMPRESS",
    "LOOK",
    "MEASURE",
    "PREPARE",
    "SERVE",
    "TRAIN",
    "Artefact",
    "Artefacts",
    "AsJson",
    "Engine",
    "Force",
    "Resume",
    "Rounds",
    "Seconds",
    "app",
    "command_line",
    "console",
    "short",
]

PREPARE = "Data, networks and settings"
TRAIN = "Train"
COMPRESS = "Compress and export"
SERVE = "Predict and serve"
LOOK = "Look at results"
MEASURE = "Measure"
_PANELS = (PREPARE, TRAIN, COMPRESS, SERVE, LOOK, MEASURE)
"""The panels of `--help`, in the order of the chain."""


class _InOrderOfTheChain(TyperGroup):
    """Commands by panel, however the rooms were loaded."""

    def list_commands(self, ctx: Any) -> list[str]:
        panels: dict[str, Any] = {name: vars(command)["rich_help_panel"] for name, command in self.commands.items()}
        return sorted(panels, key=lambda name: _PANELS.index(panels[name]))


app = typer.Typer(
    cls=_InOrderOfTheChain,
    help="Fine-tune image classifiers, make them small and fast, serve them, and prove it with numbers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Artefact = Annotated[Path, typer.Argument(help="Folder or file of an artefact, like output/vit-lora.")]
Artefacts = Annotated[list[Path] | None, typer.Argument(help="Folders of artefacts, like output/vit-lora.")]
Force = Annotated[bool, typer.Option("--force", help="Do it even if the result is up to date.")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="Continue an interrupted run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Engine = Annotated[
    str | None,
    typer.Option(
        "--engine",
        help="What computes: onnxruntime, openvino, openvino-bf16, or several with commas: the first that can; auto: "
        "the fastest that repeats its golden answer. Default: POCKETZOO_ENGINE, else auto.",
        show_default=False,
    ),
]
Rounds = Annotated[int, typer.Option(help="Processes per variant; they take turns.")]
Seconds = Annotated[float, typer.Option(help="Measured time per process.")]


def command_line(words: list[str], options: dict[str, Any]) -> str:
    """What was typed, as a shell understands it, with the defaults that matter.

    Args:
        words: the command and its arguments.
        options: flag -> value. A flag is given by true, repeated for each value of a list, and left out by false or
            None.
    """
    given = [
        part
        for flag, values in options.items()
        for value in (values if isinstance(values, list) else [values])
        if value is not None and value is not False
        for part in ([flag] if value is True else [flag, str(value)])
    ]
    return shlex.join(["pocketzoo", *words, *given])


def short(path: Path) -> Path:
    """A path as it is shown: relative to the working directory if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def console() -> Console:
    """Where tables are printed."""
    # Without a terminal rich assumes 80 columns and would cut the table off.
    return Console(width=None if sys.stdout.isatty() else 240)
