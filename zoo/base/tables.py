"""Tables for a terminal, a plain document and Markdown; columns of text have a leading "<" in their heading."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["escape_markdown", "markdown_table", "plain", "rich_table"]

Cells = Sequence[Sequence[str]]

_MARKUP = re.compile(r"[\\`*|\[\]]")


def rich_table(heading: Sequence[str], rows: Cells, *, title: str = "", folded: Sequence[str] = ()) -> Table:
    """A table for a terminal; columns of text are left-aligned, others to the right.

    Args:
        heading: of each column; a cell of several lines has its last one in the row of the others.
        rows: the cells, without markup.
        title: above it.
        folded: headings, without the mark, of columns whose cells may take several lines.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", title=title or None, title_justify="left")
    for name in heading:
        shown, justify = name.removeprefix("<"), "left" if name.startswith("<") else "right"
        table.add_column(shown, justify=justify, vertical="bottom", no_wrap=shown not in folded, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def plain(table: Table) -> str:
    """The same as text."""
    console = Console(width=240, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def markdown_table(heading: Sequence[str], rows: Cells) -> str:
    """The same as Markdown."""
    lines = [[escape_markdown(name.removeprefix("<")) for name in heading]]
    lines.append(["---" if name.startswith("<") else "---:" for name in heading])
    lines += [[escape_markdown(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape_markdown(text: str) -> str:
    """A text without markup, on one line, also in a table's cell."""
    return " ".join(_MARKUP.sub(r"\\\g<0>", text).replace("&", "&amp;").replace("<", "&lt;").split())
