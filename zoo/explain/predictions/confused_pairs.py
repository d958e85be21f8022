"""The labels that an artefact confuses most, with images of each confusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo.explain.panels import draw_panels
from zoo.explain.predictions.answers import Answers, grid, told
from zoo.explain.predictions.confusion import Pair

__all__ = ["draw_pairs", "examples"]


def examples(answers: Answers, pair: Pair, count: int) -> npt.NDArray[np.int64]:
    """The images of a confusion, the most confident answers first: places int64 [at most `count`].

    Args:
        answers: to all images, whose labels are known.
        pair: which confusion.
        count: at most.
    """
    true, answered = answers.labels.index(pair.true), answers.labels.index(pair.answered)
    found = np.flatnonzero((answers.truth == true) & (answers.best == answered))
    confidence = answers.probabilities[found, answered]
    return found[np.argsort(-confidence, kind="stable")][:count]


def draw_pairs(path: Path, answers: Answers, pairs: Sequence[Pair], *, count: int = 6) -> None:
    """Draw a row of examples per pair and write the page as PNG.

    Args:
        path: of the PNG file.
        answers: to all images, whose labels are known.
        pairs: at least one, in this order.
        count: images of a row, at most.

    Raises:
        ArtefactError: the file cannot be written.
        ImageError: an image cannot be decoded.
    """
    panels = [[told(answers, int(place)) for place in examples(answers, pair, count)] for pair in pairs]
    rows = [grid(row, len(row))[0] for row in panels]
    what = f"the {len(pairs)} most confused pairs" if len(pairs) > 1 else "the most confused pair"
    heading = (
        f"{answers.name}: {what} of labels among {len(answers.samples):,} images of {answers.source}; "
        "the most confident errors first"
    )
    titles = [f"{pair.true} → {pair.answered}\n{pair.count} of {pair.n} ({pair.share:.1%})" for pair in pairs]
    draw_panels(path, rows, heading=heading, row_titles=titles)
