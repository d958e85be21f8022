"""A report as one HTML file that needs no other: pictures and style are inside, there is no script."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from bench.report.blocks import Section

__all__ = ["html"]


def html(title: str, headline: Mapping[str, str], sections: Sequence[Section], pictures: Mapping[str, bytes]) -> str:
    """The page; labels and names of files are text in it, whatever characters they have.

    Args:
        title: name of the artefact.
        headline: what to see first: names and values.
        sections: the parts.
        pictures: PNG files by the names that figures and galleries have.
    """
    # Labels and names of files come from anywhere: everything is escaped.
    environment = Environment(
        loader=PackageLoader("bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    loader = environment.loader
    assert loader is not None
    environment.filters["breaks"] = _breaks
    style, _, _ = loader.get_source(environment, "report.css")
    return environment.get_template("report.html").render(
        title=title,
        headline=headline,
        sections=sections,
        style=Markup(style),  # noqa: S704 - this package's own file
        images={name: f"data:image/png;base64,{base64.b64encode(data).decode()}" for name, data in pictures.items()},
    )


def _breaks(text: str) -> Markup:
    """A text that may be broken after slashes, hyphens and underscores and before suffixes."""
    parts = re.split(r"(?<=[/_-])(?=.)|(?<=\w)(?=\.[a-z])", text)
    return Markup("<wbr>").join(escape(part) for part in parts)
