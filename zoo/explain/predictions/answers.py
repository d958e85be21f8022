"""What an artefact answers to images, and how an answer is written below or above one. `N` images, `K` labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo.artefact.card import Card
from zoo.artefact.predictor import softmax
from zoo.artefact.preprocess import pixels
from zoo.base.errors import ImageError
from zoo.base.statistics.paired import Labels
from zoo.data.dataset import Sample
from zoo.data.image_set import ImageSet
from zoo.explain.panels import NEUTRAL, RIGHT, WRONG, Panel
from zoo.training.evaluate import Logits, file_logits

__all__ = ["RIGHT_MARK", "WRONG_MARK", "Answers", "answer", "grid", "percent", "seen", "told"]

RIGHT_MARK, WRONG_MARK = "✓", "✗"
_FEWEST = 3
"""Places of a row."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What one file answers to N images."""

    name: str
    """Folder and file, as in tables."""
    card: Card
    source: str
    """The images, in words."""
    samples: Sequence[Sample] = field(repr=False)
    """[N]"""
    logits: Logits = field(repr=False)
    """float32 [N, K]"""
    truth: Labels | None = field(repr=False)
    """int64 [N], indices into the card's labels; None where the labels are not known."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The K labels."""
        return self.card.use.labels

    @property
    def probabilities(self) -> npt.NDArray[np.float32]:
        """[N, K], calibrated by the card's temperature."""
        return softmax(self.logits, self.card.use.temperature)

    def shares(self, place: int) -> npt.NDArray[np.float32]:
        """The probabilities [K] of one image."""
        return softmax(self.logits[place], self.card.use.temperature)

    @property
    def best(self) -> Labels:
        """The answers [N], as indices of labels; of equal logits the earlier label, as in serving."""
        return np.asarray(self.logits.argmax(axis=1), dtype=np.int64)

    @property
    def right(self) -> npt.NDArray[np.bool_] | None:
        """[N]; None where the labels are not known."""
        return None if self.truth is None else self.best == self.truth


def answer(path: Path, card: Card, pictures: ImageSet, places: Sequence[int] | None = None) -> Answers:
    """Ask an artefact's file.

    Args:
        path: an ONNX file, or a checkpoint, which needs torch.
        card: the file's.
        pictures: to ask about.
        places: of the images to ask about, the only ones that are read; None: all.

    Raises:
        ArtefactError, CardError, CheckError: the file cannot be used.
        DataError: the data set has labels that the artefact does not know, or a file of it has gone.
        ImageError: an image cannot be used; names it.
    """
    name = f"{path.resolve().parent.name}/{path.name}"
    truth = pictures.truth(card.use.labels, where=name)
    chosen = np.arange(len(pictures.samples)) if places is None else np.asarray(places, dtype=np.int64)
    samples = [pictures.samples[place] for place in chosen]
    answered = file_logits(path, samples)
    return Answers(
        name=name,
        card=answered.card,
        source=f"{pictures.name}, {pictures.split} split" if pictures.split else pictures.name,
        samples=samples,
        logits=answered.logits,
        truth=None if truth is None else truth[chosen],
    )


def seen(sample: Sample, card: Card) -> npt.NDArray[np.uint8]:
    """The part of an image that a network gets, before it is normalised: uint8 [H, W, 3], grey for one channel.

    Raises:
        ImageError: it cannot be decoded, or is too elongated; names it.
    """
    try:
        array = pixels(sample.read(), card.use.input)
    except ImageError as error:
        raise type(error)(f"{sample.name}: {error}; leave it out") from error
    return np.broadcast_to(array, (*array.shape[:2], 3))


def percent(probability: float) -> str:
    """A probability in whole per cent, such that only a certainty is 100% and only an impossibility 0%."""
    if 0 < probability < 0.005:
        return "<1%"
    return ">99%" if 0.995 <= probability < 1 else f"{probability:.0%}"


def told(answers: Answers, place: int, *, more: str = "") -> Panel:
    """An image with its answer: right and wrong by colour and mark, probability first, since labels may be long.

    Below a wrong answer stands the truth with its probability; where it is not known, the second best answer.

    Args:
        answers: to all images.
        place: of this one.
        more: a line above.
    """
    row = answers.shares(place)
    best = int(answers.best[place])
    lines = [f"{percent(row[best])} {answers.labels[best]}"]
    colour = NEUTRAL
    if answers.truth is None:
        second = int(np.argsort(-row, kind="stable")[1])
        lines.append(f"{percent(row[second])} {answers.labels[second]}")
    elif (truth := int(answers.truth[place])) == best:
        lines[0], colour = f"{RIGHT_MARK} {lines[0]}", RIGHT
    else:
        lines[0], colour = f"{WRONG_MARK} {lines[0]}", WRONG
        lines.append(f"true: {percent(row[truth])} {answers.labels[truth]}")
    title = "\n".join([more, *lines] if more else lines)
    return Panel(image=seen(answers.samples[place], answers.card), title=title, colour=colour, framed=True)


def grid(panels: Sequence[Panel], columns: int) -> list[list[Panel | None]]:
    """Panels in rows of `columns`, the last one filled with free places.

    Fewer panels make one row that is as short, but not so short that the heading would not fit.
    """
    columns = max(_FEWEST, min(columns, len(panels)))
    rows: list[list[Panel | None]] = [list(panels[start : start + columns]) for start in range(0, len(panels), columns)]
    rows[-1] += [None] * (columns - len(rows[-1]))
    return rows
