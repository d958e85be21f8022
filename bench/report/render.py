"""A report as Markdown, and as one HTML file that needs no other: images and style are inside, there is no script."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from bench.report.blocks import Section
from zoo.base.tables import escape_markdown, markdown_table

__all__ = ["html", "markdown"]


def html(title: str, headline: Mapping[str, str], sections: Sequence[Section], pictures: Mapping[str, bytes]) -> str:
    """The page; labels and names of files are text in it, whatever characters they have.

    Args:
        title: name of the artefact.
        headline: what to see first: names and values.
        sections: the parts.
        pictures: PNG files by the names that figures and galleries have.
    """
    style = files("bench.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    template = _environment().get_template("report.html")
    return template.render(
        title=title,
        headline=headline,
        sections=sections,
        style=Markup(style),  # noqa: S704 - this package's own file
        images={name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in pictures.items()},
    )


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The same without images as Markdown; labels and names of files are no markup there."""
    return _environment().get_template("report.md").render(title=title, sections=sections)


def _environment() -> Environment:
    # Labels and names of files come from anywhere: HTML is escaped as a whole, Markdown by its own filter.
    environment = Environment(
        loader=PackageLoader("bench.report"),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "breaks": _breaks,
        "md": escape_markdown,
        "rows": lambda table: markdown_table(table.heading, table.rows),
    }
    return environment


def _breaks(text: str) -> Markup:
    """A text that may be broken after slashes, hyphens and underscores and before suffixes."""
    parts = re.split(r"(?<=[/_-])(?=.)|(?<=\w)(?=\.[a-z])", text)
    return Markup("<wbr>").join(escape(part) for part in parts)
