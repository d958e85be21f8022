"""Writes the page of all commands from the Typer application, as `pocketzoo COMMAND --help` prints them."""

from __future__ import annotations

import re

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click
from typer.main import get_command

from zoo.main import load_commands

PAGE = "reference/commands.md"


def page() -> str:
    """Markdown with a section for each command."""
    command = get_command(load_commands())
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="pocketzoo"), name="pocketzoo")
    # Lists of subcommands cut each summary off in the middle; the sections below have it whole.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n?", "", text)
    title, _, rest = text.partition("\n")
    assert title == "# `pocketzoo`", title
    return f"# Commands\n{rest}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page."""
    files.append(File.generated(config, PAGE, content=page()))
    return files
