"""How good one file's answers are: per class, how sure, and where it errs worst. `N` images, `K` labels."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from zoo.artefact.card import Use
from zoo.artefact.predictor import softmax
from zoo.artefact.preprocess import encode_png, pixels
from zoo.base.statistics.paired import Labels, Logits
from zoo.data.dataset import Sample
from zoo.explain.predictions.confusion import Counts, confusion_counts
from zoo.explain.predictions.top_losses import top_losses
from zoo.training.evaluate import CALIBRATION_BINS, Averages, ClassMetrics, averages, calibration_error, per_class

__all__ = ["Answers", "Bin", "Calibration", "WorstError", "judge", "reliability", "worst_errors"]

_EDGE = 160
"""Pixels of a shown image's longer edge, at most."""


@dataclass(frozen=True, kw_only=True)
class Bin:
    """The answers whose confidence lies in (low, high]. Fractions."""

    low: float
    high: float
    n: int
    """Images."""
    confidence: float | None
    """Their mean confidence; None where there are none."""
    accuracy: float | None
    """Share of them that are right; None where there are none."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How far the top answer's probability can be believed at a temperature."""

    temperature: float
    error: float
    """Expected calibration error, a fraction."""
    bins: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class WorstError:
    """A wrong answer."""

    name: str
    """Of the image."""
    truth: str
    answer: str
    loss: float
    """Negative logarithm of the true label's probability, after the temperature."""
    true_probability: float
    top: tuple[tuple[str, float], ...]
    """The most probable labels, best first, with their probabilities."""
    picture: bytes = field(repr=False)
    """What the network saw, as a PNG file."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one file answered to images whose labels are known."""

    classes: tuple[ClassMetrics, ...]
    """Worst F1 first; labels without an image are left out."""
    averages: Averages | None
    confusion: Counts = field(repr=False)
    """[K, K]: images by true label and answer."""
    before: Calibration
    """As trained: at the temperature 1."""
    after: Calibration
    """At the card's temperature."""
    wrong: int
    """Images answered wrongly."""
    errors: tuple[WorstError, ...]


def judge(logits: Logits, labels: Labels, samples: Sequence[Sample], use: Use, *, errors: int = 12) -> Answers:
    """Everything that labels say about the answers [N, K].

    Args:
        logits: [N, K].
        labels: [N], the true labels.
        samples: the N images.
        use: labels, input and temperature.
        errors: how many of the worst errors to show.
    """
    rows = [row for row in per_class(logits, labels, use.labels) if row.n]
    answers = logits.argmax(axis=1).astype(np.int64)
    return Answers(
        classes=tuple(sorted(rows, key=lambda row: (row.f1, row.recall, -row.n, row.label))),
        averages=averages(rows),
        confusion=confusion_counts(labels, answers, len(use.labels)),
        before=_calibration(logits, labels, 1.0),
        after=_calibration(logits, labels, use.temperature),
        wrong=int((answers != labels).sum()),
        errors=worst_errors(logits, labels, samples, use, count=errors),
    )


def reliability(
    probabilities: npt.NDArray[np.float32], labels: Labels, *, bins: int = CALIBRATION_BINS
) -> tuple[Bin, ...]:
    """Confidence and accuracy by confidence, as in a reliability diagram (Guo et al. 2017, figure 4).

    Args:
        probabilities: [N, K].
        labels: [N], the true labels.
        bins: of equal width over 0 to 1, each with its upper end, as zoo.training.evaluate.calibration_error has them.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    places = np.ceil(confidence * bins).clip(1, bins).astype(np.int64) - 1
    counts = np.bincount(places, minlength=bins)
    sums = [np.bincount(places, weights=values, minlength=bins) for values in (confidence, right)]
    return tuple(
        Bin(
            low=place / bins,
            high=(place + 1) / bins,
            n=int(n),
            confidence=float(sums[0][place] / n) if n else None,
            accuracy=float(sums[1][place] / n) if n else None,
        )
        for place, n in enumerate(counts)
    )


def worst_errors(
    logits: Logits, labels: Labels, samples: Sequence[Sample], use: Use, *, count: int
) -> tuple[WorstError, ...]:
    """The wrong answers that the network was surest of: those with the largest loss, largest first.

    Args:
        logits: [N, K].
        labels: [N], the true labels.
        samples: the N images.
        use: labels, input and temperature.
        count: how many at most.
    """
    probabilities = softmax(logits, use.temperature)
    wrong = logits.argmax(axis=1) != labels
    ordered = top_losses(logits, labels, use.temperature, len(labels))
    found = []
    for entry in [loss for loss in ordered if wrong[loss.place]][:count]:
        index = entry.place
        best = np.argsort(-probabilities[index], kind="stable")[:3]
        found.append(
            WorstError(
                name=samples[index].name,
                truth=use.labels[labels[index]],
                answer=use.labels[best[0]],
                loss=entry.loss,
                true_probability=float(probabilities[index, labels[index]]),
                top=tuple((use.labels[label], float(probabilities[index, label])) for label in best),
                picture=_shown(pixels(samples[index].read(), use.input)),
            )
        )
    return tuple(found)


def _calibration(logits: Logits, labels: Labels, temperature: float) -> Calibration:
    probabilities = softmax(logits, temperature)
    return Calibration(
        temperature=temperature,
        error=calibration_error(probabilities, labels),
        bins=reliability(probabilities, labels),
    )


def _shown(picture: npt.NDArray[np.uint8]) -> bytes:
    """uint8 [H, W, C] as a small PNG file."""
    whole = encode_png(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    if max(picture.shape[:2]) <= _EDGE:
        return whole
    with Image.open(io.BytesIO(whole)) as image:
        image.thumbnail((_EDGE, _EDGE))
        return encode_png(np.asarray(image))
