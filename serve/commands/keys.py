"""The command that makes, lists and removes the API keys of the server."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.base.commandline import SERVE, AsJson, app, console

__all__ = ["key"]


@app.command(rich_help_panel=SERVE)
def key(
    name: Annotated[str | None, typer.Argument(help="What logs call the key, like phone-app.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests per second in the long run; default: no limit.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests at once after a rest; default: the rate.")] = None,
    file: Annotated[
        Path, typer.Option("--file", envvar="POCKETZOO_KEYS_FILE", help="TOML file that holds the hashes of the keys.")
    ] = Path("keys.toml"),
    listed: Annotated[bool, typer.Option("--list", help="List the keys of the file.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the key NAME.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make, list or remove API keys of the server.

    A new key is printed once: the file keeps its hash only.
    """
    from serve.access.key_file import add_key, read_keys, remove_key
    from zoo.base.errors import UsageError

    if listed == (name is not None) or (listed and remove):
        raise UsageError("expected the NAME of a key, or --list alone; `pocketzoo key --help` shows all")
    if name is None:
        _list(read_keys(file), as_json)
    elif remove:
        remove_key(file, name)
        _say({"name": name, "file": str(file)}, f"{file}: {name} removed", as_json)
    else:
        drawn = add_key(file, name, rate=rate, burst=burst)
        _say({"name": name, "file": str(file), "key": drawn}, drawn, as_json)
        if not as_json:
            _explain(name, file)


def _explain(name: str, file: Path) -> None:
    from zoo.base.progress import note

    note(
        f"{name} is in {file}, as a hash: the key above is shown this once. "
        f"Start the server with POCKETZOO_KEYS_FILE={file.resolve()}; clients send `Authorization: Bearer KEY`"
    )


def _say(values: dict[str, Any], sentence: str, as_json: bool) -> None:
    print(json.dumps(values) if as_json else sentence)


def _list(entries: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in entries]))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "requests/s", "burst", "sha256"):
        table.add_column(heading, no_wrap=True)
    for entry in entries:
        limits = (f"{entry.rate:g}", str(entry.capacity)) if entry.rate is not None else ("", "")
        table.add_row(entry.name, *limits, entry.sha256[:12])
    console().print(table)
