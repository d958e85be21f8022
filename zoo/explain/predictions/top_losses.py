"""The images that an artefact is most wrong about: those with the highest loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from zoo.base.statistics.paired import Labels, Logits
from zoo.explain.panels import draw_panels
from zoo.explain.predictions.answers import Answers, grid, told

__all__ = ["Loss", "draw_losses", "top_losses"]

_COLUMNS = 6


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One of the images."""

    place: int
    """Its index among all."""
    loss: float
    """Cross-entropy in nats: -ln of the true label's calibrated probability."""


def top_losses(logits: Logits, labels: Labels, temperature: float, count: int) -> tuple[Loss, ...]:
    """The images with the highest cross-entropy, highest first; of equal ones the earlier.

    Args:
        logits: [N, K].
        labels: [N], the true labels.
        temperature: divides the logits: the loss is that of calibrated probabilities.
        count: how many images; fewer where there are not as many.
    """
    losses = -log_softmax(logits.astype(np.float64) / temperature, axis=1)[np.arange(len(labels)), labels]
    order = np.argsort(-losses, kind="stable")[:count]
    return tuple(Loss(place=int(place), loss=float(losses[place])) for place in order)


def draw_losses(path: Path, answers: Answers, losses: Sequence[Loss]) -> None:
    """Draw images with their losses, answers and true labels, six in a row, and write the page as PNG.

    Args:
        path: of the PNG file.
        answers: to all images, whose labels are known.
        losses: which to draw, in this order; numbered from 1.

    Raises:
        ArtefactError: the file cannot be written.
        ImageError: an image cannot be decoded.
    """
    panels = [
        told(answers, entry.place, more=f"{number}. loss {entry.loss:.2f}") for number, entry in enumerate(losses, 1)
    ]
    heading = (
        f"{answers.name}: of {len(answers.samples):,} images of {answers.source}, the {len(losses)} with the highest "
        "loss (-ln of the true label's calibrated probability)"
    )
    draw_panels(path, grid(panels, _COLUMNS), heading=heading)
