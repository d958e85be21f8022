"""Pages of small images with their titles, as PNG: what every command of `pocketzoo explain` draws with."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zoo.base.figures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NEUTRAL", "RIGHT", "WRONG", "Panel", "draw_panels"]

RIGHT, WRONG, NEUTRAL = "#0072b2", "#d55e00", "#444444"
"""Blue and vermilion of Okabe and Ito's palette, which colour-blind people tell apart; and a grey."""

_FRAME = 2.5
_FONT = 8.0
_LINE = 0.145
"""Inches of a line of a title at that size."""
_HEADING_LINE = 0.2
"""Inches of a line of the heading, which is larger."""
_CHARACTER = 0.068
"""Inches of a character, on average."""
_HEAT = 0.65
"""Opacity of a heat map: what is left of the image below it must not change the order of its colours."""
_DIMMED = (0.25, 0.75)
"""Brightness of black and white below a heat map."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small image."""

    image: npt.NDArray[np.uint8] | npt.NDArray[np.float32]
    """uint8 [H, W, 3], or one channel [H, W] that is drawn through `colours` from its least to its largest value."""
    title: str = ""
    """Above it; lines are wrapped to the image's width, and cut after the second."""
    colour: str = NEUTRAL
    """Of its title, and of its frame where `framed`."""
    framed: bool = False
    overlay: npt.NDArray[np.float32] | None = None
    """[h, w], stretched over the image, grey and dimmed, as a heat map: its least value dark, its largest yellow."""
    colours: str = "viridis"
    """Matplotlib's name of the colour map of an image with one channel."""


def draw_panels(
    path: Path,
    rows: Sequence[Sequence[Panel | None]],
    *,
    heading: str = "",
    row_titles: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    edge: float = 1.5,
) -> None:
    """Draw rows of panels, of equal size, and write them as PNG.

    Args:
        path: of the PNG file.
        rows: None leaves a place free; rows may have different lengths.
        heading: above all.
        row_titles: left of each row; "" for none.
        column_titles: above each column.
        edge: of a panel in inches, at 120 pixels each.

    Raises:
        ArtefactError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    width = int(edge / _CHARACTER)
    texts = [[_wrapped(panel.title, width) if panel else "" for panel in row] for row in rows]
    lines = max(text.count("\n") + 1 if text else 0 for row in texts for text in row)
    above = _even(heading, max(24, int((columns * edge) / _CHARACTER)))
    height = len(rows) * (edge + 0.1 + _LINE * lines) + 0.3 + _HEADING_LINE * (above.count("\n") + 1)
    figure = Figure(figsize=(columns * (edge + 0.1) + 0.3, height))
    figure.set_layout_engine("constrained", w_pad=0.03, h_pad=0.03, wspace=0.02, hspace=0.02)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for places, row, row_texts in zip(grid, rows, texts, strict=True):
        for number, place in enumerate(places):
            panel = row[number] if number < len(row) else None
            if panel is None:
                place.set_axis_off()
            else:
                _draw(place, panel, row_texts[number])
    for place, title in zip(grid[:, 0], row_titles, strict=False):
        if not title:
            continue
        place.set_axis_on()
        place.set_ylabel(_wrapped(title, int(edge / _CHARACTER)), fontsize=_FONT, color=NEUTRAL)
    for place, title in zip(grid[0], column_titles, strict=False):
        over = _wrapped(title, width)
        place.set_title("\n".join(filter(None, (over, place.get_title()))), fontsize=_FONT)
    if heading:
        figure.suptitle(above, fontsize=_FONT + 2)
    save_figure(figure, path)


def _wrapped(text: str, width: int) -> str:
    # Given line breaks stay; each line is wrapped on its own, and what does not fit into two ends in an ellipsis.
    parts = [textwrap.wrap(line, width, max_lines=2, placeholder=" …") or [""] for line in text.split("\n")]
    return "\n".join(line for part in parts for line in part)


def _even(text: str, width: int) -> str:
    """Lines of at most `width` characters, as few as possible and about as long as each other."""
    count = len(textwrap.wrap(text, width))
    while width > 1 and len(textwrap.wrap(text, width - 1)) <= count:
        width -= 1
    return textwrap.fill(text, width)


def _dimmed(image: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """An image uint8 [H, W, 3] in greys from _DIMMED: float64 [H, W, 3] between 0 and 1."""
    black, white = _DIMMED
    grey = black + (white - black) * (image @ np.array(_LUMA)) / 255  # [H, W]
    return np.repeat(grey[..., None], 3, axis=2)


def _draw(place: Axes, panel: Panel, text: str) -> None:
    height, width = panel.image.shape[:2]
    smooth = "nearest" if max(height, width) < 64 else "antialiased"
    if panel.image.ndim == 2:
        place.imshow(panel.image, cmap=panel.colours, interpolation="nearest")
    else:
        place.imshow(panel.image if panel.overlay is None else _dimmed(panel.image), interpolation=smooth)
    if panel.overlay is not None:
        place.imshow(
            panel.overlay,
            cmap="inferno",
            alpha=_HEAT,
            interpolation="bilinear",
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
    place.set_xticks([])
    place.set_yticks([])
    for spine in place.spines.values():
        spine.set_visible(panel.framed)
        spine.set_color(panel.colour)
        spine.set_linewidth(_FRAME)
    if text:
        place.set_title(text, fontsize=_FONT, color=panel.colour, pad=3)
