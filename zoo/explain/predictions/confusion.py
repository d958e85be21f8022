"""The confusion matrix: which labels an artefact takes for which. `N` images, `K` labels."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zoo.base.figures import axes as axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Counts", "Pair", "confusion_counts", "draw_confusion", "figure_size", "most_confused", "write_confusion"]

Counts = npt.NDArray[np.int64]
"""[K, K]: images by true label (row) and answer (column)."""

MOST = 30
"""Labels that are drawn at once; of more, those that are confused most."""

_CHARACTERS = 24
"""Of a label beside its row; longer ones are cut."""
_GAMMA = 0.5
"""The colour follows the square root of the share: an error in a hundred is seen beside a nearly full diagonal."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A label, and another one that some of its images are taken for."""

    true: str
    answered: str
    count: int
    """Images."""
    n: int
    """Images with the true label, whatever the answer."""

    @property
    def share(self) -> float:
        """Of the true label's images; a fraction."""
        return self.count / self.n


def confusion_counts(labels: npt.NDArray[np.int64], answers: npt.NDArray[np.int64], classes: int) -> Counts:
    """Images by true label and answer (scikit-learn's): int64 [K, K].

    Args:
        labels: [N], the true labels.
        answers: [N], the labels that were answered.
        classes: K.
    """
    from sklearn.metrics import confusion_matrix

    found: Counts = confusion_matrix(labels, answers, labels=np.arange(classes))
    return found


def most_confused(counts: Counts, labels: Sequence[str], top: int) -> tuple[Pair, ...]:
    """The `top` pairs with the most images, and only those with any.

    Of pairs with as many images the one goes first whose true label has fewer: a larger share of it is lost.

    Args:
        counts: [K, K], see :func:`confusion_counts`.
        labels: names of the K labels.
        top: how many pairs.
    """
    totals = counts.sum(axis=1)
    pairs = [
        Pair(true=labels[row], answered=labels[column], count=int(counts[row, column]), n=int(totals[row]))
        for row, column in np.argwhere(counts)
        if row != column
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.count, pair.n))[:top])


def draw_confusion(axes: Axes, counts: Counts, labels: Sequence[str]) -> None:
    """Draw a confusion matrix: colours by the share of the true label's images, numbers of images in the cells.

    Labels that no image has and no answer names are left out. Of more than 30 others those are drawn that are confused
    most, with one more column for the answers that name none of them. Make the figure :func:`figure_size` large, with
    matplotlib's constrained layout.

    Args:
        axes: to draw on; a colour bar is added beside them.
        counts: [K, K], see :func:`confusion_counts`.
        labels: names of the K labels.
    """
    from matplotlib.colors import PowerNorm

    chosen, complete = _chosen(counts)
    shown = counts[np.ix_(chosen, chosen)]
    names = [textwrap.shorten(labels[place], _CHARACTERS, placeholder="…") or "…" for place in chosen]
    totals = counts[chosen].sum(axis=1, keepdims=True)
    columns = names if complete else [*names, "another label"]
    if not complete:
        shown = np.hstack([shown, totals - shown.sum(axis=1, keepdims=True)])
    shares = shown / np.maximum(totals, 1)
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(_GAMMA, vmin=0, vmax=1))
    upright = len(columns) > 12 or max(map(len, columns)) > 6
    axes.set_xticks(range(len(columns)), columns, rotation=90 if upright else 0, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("answered")
    axes.set_ylabel("true label" if complete else f"true label ({len(names)} of {len(labels):,}, the most confused)")
    for row, column in np.argwhere(shown):
        colour = "white" if shares[row, column] > 0.4 else "black"
        text = f"{shown[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8 if len(text) < 4 else 6)
    bar = axes.figure.colorbar(picture, ax=axes, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1], shrink=0.8)
    bar.ax.set_yticklabels(["0%", "1%", "10%", "25%", "50%", "100%"], fontsize=8)
    bar.set_label("share of the true label's images", fontsize=8)


def figure_size(counts: Counts) -> tuple[float, float]:
    """Width and height in inches that :func:`draw_confusion` wants for the counts [K, K]."""
    edge = max(3.0, 0.3 * len(_chosen(counts)[0]))
    return edge + 2.6, edge + 1.6


def write_confusion(path: Path, counts: Counts, labels: Sequence[str], *, heading: str) -> None:
    """Draw a confusion matrix and write it as PNG.

    Args:
        path: of the PNG file.
        counts: [K, K], see :func:`confusion_counts`.
        labels: names of the K labels.
        heading: above it; its line breaks stay.

    Raises:
        ArtefactError: the file cannot be written.
    """
    width, height = figure_size(counts)
    with axes_of(path, width=width, height=height) as axes:
        draw_confusion(axes, counts, labels)
        lines = [textwrap.fill(line, max(40, int(width / 0.085))) for line in heading.split("\n")]
        # Over the whole width: centred above the axes it would be cut off where the matrix is small.
        axes.figure.suptitle("\n".join(lines), fontsize=10)


def _chosen(counts: Counts) -> tuple[npt.NDArray[np.intp], bool]:
    """The labels that are drawn, in their order, and whether they are all that occur."""
    present = np.flatnonzero(counts.any(axis=0) | counts.any(axis=1))
    if len(present) <= MOST:
        return present, True
    errors = counts - np.diag(np.diag(counts))
    rows, columns = np.nonzero(errors)
    worst = np.argsort(-errors[rows, columns], kind="stable")
    # Pair by pair, so that both labels of a confusion are there.
    pairs = np.stack([rows[worst], columns[worst]], axis=1).ravel()
    chosen = list(dict.fromkeys([*pairs.tolist(), *present.tolist()]))[:MOST]
    return np.array(sorted(chosen), dtype=np.intp), False
