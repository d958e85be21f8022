"""Images of results: matplotlib without a display, written atomically."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import matplotlib

from zoo.base.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["axes", "figure_png", "save_figure"]

_DPI = 120


@contextmanager
def axes(path: Path, *, width: float = 8.0, height: float = 5.0) -> Iterator[Axes]:
    """Axes to draw on; leaving the context writes them to `path` as PNG.

    Args:
        path: of the image; a failing drawing leaves an older one as it was.
        width: in inches, at 120 pixels each.
        height: in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure.add_subplot()
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path, *, remarks: Mapping[str, str] | None = None) -> None:
    """Write a figure as PNG, with nothing cut off and no trace of when it was made; `remarks` are kept in the file."""
    write_atomically(path, lambda temporary: _save(figure, temporary, remarks or {}))


def figure_png(figure: Figure) -> bytes:
    """A figure as the content of a PNG file, as :func:`save_figure` writes it."""
    stream = io.BytesIO()
    _save(figure, stream, {})
    return stream.getvalue()


def _save(figure: Figure, path: Path | IO[bytes], remarks: Mapping[str, str]) -> None:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        # A dollar in a class or file name is a dollar. Still empty are the numbers of axes, whose powers are formulas.
        if isinstance(text, Text) and text.get_text():
            text.set_parse_math(False)
    with warnings.catch_warnings(), matplotlib.rc_context({"savefig.facecolor": "white"}):
        # A glyph that the font lacks (a class name in another script) is drawn as a box; no reason to stop.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        metadata = {"Software": None, **remarks}
        figure.savefig(path, format="png", dpi=_DPI, bbox_inches="tight", pad_inches=0.15, metadata=metadata)
