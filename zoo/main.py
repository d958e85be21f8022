"""The console script: the commands of every room that is installed, and what becomes of their errors."""

from __future__ import annotations

import sys
from importlib.metadata import entry_points, version
from typing import Annotated

import typer

from zoo.base.commandline import app
from zoo.base.errors import ArtefactError, PocketzooError, UsageError
from zoo.base.interrupt import requests_to_end_interrupt
from zoo.base.machine import keep_freed_memory
from zoo.base.progress import note

__all__ = ["app", "load_commands", "main"]

_INTERRUPTED = 130
_EXTRAS = {
    **dict.fromkeys(("filelock", "matplotlib", "mlxtend", "onnxscript", "optuna", "safetensors"), "train"),
    **dict.fromkeys(("scipy", "sklearn", "sympy", "timm", "tomli_w", "torch", "torch_pruning", "torchvision"), "train"),
    **dict.fromkeys(("hdrh", "jinja2", "psutil", "pytest", "pytest_benchmark"), "bench"),
    **dict.fromkeys(("openvino", "nncf"), "peers"),
    "captum": "explain",
    "fastai": "race",
    "open_clip": "clip",
    **dict.fromkeys(("tensorboard", "wandb"), "logs"),
    "pyarrow": "score",
    "ray": "ray",
}
"""Package -> the extra of pyproject.toml that installs it."""


def load_commands() -> typer.Typer:
    """The application with the commands of all rooms: of the packages that have an entry point in `pocketzoo.commands`.

    Raises:
        UsageError: there is none; the project runs from a folder that was never installed.
    """
    rooms = sorted(entry_points(group="pocketzoo.commands"), key=lambda room: room.name != "zoo")
    if not rooms:
        raise UsageError("pocketzoo is not installed here; `pip install -e .` in its folder, or `make setup`")
    for room in rooms:
        room.load()
    return app


def _show_version(asked: bool) -> None:
    if asked:
        print(f"pocketzoo {version('pocketzoo')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line: exit code 0 done, 1 failed, 2 wrong usage."""
    keep_freed_memory()
    requests_to_end_interrupt()
    try:
        load_commands()()
    except UsageError as error:
        sys.exit(_complain(error, 2))
    except PocketzooError as error:
        sys.exit(_complain(error, 1))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            raise
        sys.exit(
            _complain(ArtefactError(f"{package} is not installed; pip install 'pocketzoo[{_EXTRAS[package]}]'"), 1)
        )
    except SystemExit as stop:
        # What typer makes of Ctrl-C and of SIGTERM, without a word.
        if stop.code == _INTERRUPTED:
            sys.exit(_complain(ArtefactError("interrupted; the same command continues where it stopped"), 1))
        raise


def _complain(error: PocketzooError, code: int) -> int:
    note(f"error: {error}")
    return code
