"""What a report's page is made of, whatever it is written as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Block", "Command", "Facts", "Figure", "Gallery", "Section", "Shown", "Table", "Text"]


@dataclass(frozen=True, kw_only=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Command:
    """What to type, or what was typed."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Terms and what they are."""

    rows: Mapping[str, str]
    title: str = ""
    """What they are about; "": what the part of the page is about."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; its columns of text have a leading "<" in their heading, the others are numbers."""

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str
    """What it shows."""
    folded: bool = False
    """Whether the page shows it only on demand, where it can."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A diagram, which only a page with images has."""

    names: Sequence[str]
    """Of its PNG files among the page's images; side by side, or one below the other on a narrow page."""
    alt: str
    """What it shows, for people who don't see it."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image and what is to be said of it."""

    name: str
    """Of its PNG file among the page's images."""
    alt: str
    heading: str
    lines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """Small images, and the table that stands for them where there are none."""

    pictures: Sequence[Shown]
    table: Table


Block = Text | Command | Facts | Table | Figure | Gallery


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page with a heading."""

    ident: str
    title: str
    blocks: Sequence[Block]
