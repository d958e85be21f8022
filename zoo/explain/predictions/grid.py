"""A grid of images with an artefact's answers: right and wrong told apart at a glance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo.base.statistics.paired import Labels
from zoo.explain.panels import draw_panels
from zoo.explain.predictions.answers import RIGHT_MARK, WRONG_MARK, Answers, grid, told

__all__ = ["COLUMNS", "draw_predictions", "sample_places"]

COLUMNS = 10


def sample_places(truth: Labels | None, n: int, *, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw images at random, the labels in turn: of ten labels each third of thirty images shows every label.

    Args:
        truth: int64 [N], the true labels; None where they are not known: all images are then as likely.
        n: N, the number of images to draw from.
        count: how many to draw; fewer where there are not as many.
        seed: of the drawing.

    Returns:
        int64 [min(count, N)]: places from 0 to N - 1, none twice.
    """
    order = np.random.default_rng(seed).permutation(n)
    if truth is None:
        return np.sort(order[:count])
    turn = np.empty(n, dtype=np.int64)
    for label in np.unique(truth):
        mine = order[truth[order] == label]
        turn[mine] = np.arange(len(mine))
    # Which labels come in a turn that is cut short is left to chance too.
    drawn = order[np.argsort(turn[order], kind="stable")][:count]
    return np.asarray(drawn[np.lexsort((truth[drawn], turn[drawn]))], dtype=np.int64)


def draw_predictions(path: Path, answers: Answers, *, note: str = "") -> None:
    """Draw every image with its answer, ten in a row, and write the page as PNG.

    Args:
        path: of the PNG file.
        answers: what to draw, in this order.
        note: how the images were chosen, for the heading.

    Raises:
        ArtefactError: the file cannot be written.
        ImageError: an image cannot be decoded.
    """
    panels = [told(answers, place) for place in range(len(answers.samples))]
    draw_panels(path, grid(panels, COLUMNS), heading=_heading(answers, note))


def _heading(answers: Answers, note: str) -> str:
    n = len(answers.samples)
    what = f"{answers.name}: {n} image{'s' if n != 1 else ''} of {answers.source}"
    if answers.right is None:
        below = "Without true labels: the two most probable answers."
    elif answers.right.all():
        below = f"All {n} are {RIGHT_MARK} right."
    else:
        below = (
            f"{int(answers.right.sum())} of {n} {RIGHT_MARK} right; below what is {WRONG_MARK} wrong, the true label."
        )
    return f"{what}{f', {note}' if note else ''}. {below}"
