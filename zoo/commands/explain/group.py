"""What the commands that draw images of a network and its answers share: their group, and where images go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.base.commandline import LOOK, app, short
from zoo.base.errors import UsageError

__all__ = ["Out", "explain", "picture_path", "say"]

explain = typer.Typer(help="Images of what a network looks at, and of where it errs.", no_args_is_help=True)
app.add_typer(explain, name="explain", rich_help_panel=LOOK)

Out = Annotated[
    Path | None,
    typer.Option(
        "--out", help="PNG file to write. Default: in the artefact's folder, below explain/.", show_default=False
    ),
]


def picture_path(artefact: Path, out: Path | None, name: str, suffix: str = ".png") -> Path:
    """Where an image goes: `out`, else `<artefact's folder>/explain/<name>.png`.

    Raises:
        UsageError: `out` has another suffix.
    """
    if out is None:
        folder = artefact if artefact.is_dir() else artefact.parent
        return folder / "explain" / f"{name}{suffix}"
    if out.suffix.lower() != suffix:
        raise UsageError(f"--out {out}: expected a name ending in {suffix}, found {out.suffix or 'no suffix'}")
    return out


def say(path: Path) -> None:
    """Print where an image was written."""
    print(short(path.resolve()))
