"""What the pages have beside their text: the reference of commands, and the images that `bench publish` keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from typer import main as typer_main
from typer.cli import get_docs_for_click

ROOT = Path(__file__).resolve().parents[1]
RESULTS = "bench/results"


def on_files(files: Files, config: Any) -> Files:
    """Add what is not below docs/."""
    files.append(File.generated(config, "reference.md", content=_reference()))
    for path in sorted((ROOT / RESULTS).rglob("*")):
        if path.suffix in (".png", ".html"):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Let links that hold in the repository hold in the site, whose root is docs/."""
    return markdown.replace(f"](../{RESULTS}/", f"]({RESULTS}/")


def _reference() -> str:
    from zoo.main import load_commands

    command = typer_main.get_command(load_commands())
    context = typer_main.click.Context(command, info_name="pocketzoo")
    return get_docs_for_click(obj=command, ctx=context, name="pocketzoo", title="Every command")
