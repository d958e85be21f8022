"""ONNX file to answers: load, self-check, predict. The only way in which artefacts are run, and free of torch.

Serving, accuracy, latency and the exporter's parity check all run a graph through :class:`Predictor`, so what is
measured is what is served. `B` is the batch size, `K` the number of labels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo.artefact.card import Card, Golden
from zoo.artefact.engines import golden
from zoo.artefact.engines.choice import File, choose
from zoo.artefact.engines.golden import softmax, tolerance
from zoo.artefact.engines.runtimes import default_providers
from zoo.artefact.glance import glance_at_card
from zoo.artefact.preprocess import batch
from zoo.base.files import sha256_file
from zoo.base.machine import cores

__all__ = ["Prediction", "Predictor", "best", "default_providers", "draw_golden", "ranked", "softmax", "tolerance"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one image."""

    labels: tuple[str, ...]
    """Best first."""
    probabilities: tuple[float, ...]
    """One per label above, calibrated by the card's temperature."""


class Predictor:
    """One ONNX artefact, loaded and checked.

    Calls may come from several threads. `card`, `digest` (SHA-256 of the file) and `path` say what is loaded, `engine`
    and `engine_reason` (a sentence) what computes.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        callers: int = 1,
        check: bool = True,
        engine: str | None = None,
        providers: Sequence[str] | None = None,
        checked: str | None = None,
    ) -> None:
        """Load the file at `path`.

        Args:
            path: an ONNX file with a card.
            threads: threads of one inference; default: the cores this process may use.
            callers: threads that are going to call at the same time, each for an inference of its own. They need not
                wait for each other then; ONNX Runtime's never do.
            check: run the golden self-check. Only drafts, of which none is recorded yet, go without.
            engine: names of zoo.artefact.engines.runtimes in order of preference, separated by commas, or `auto`: the
                fastest that passes the self-check; default: POCKETZOO_ENGINE, else `auto`.
            providers: ONNX Runtime execution providers, which leave no other engine to choose; default:
                zoo.artefact.engines.runtimes.default_providers.
            checked: SHA-256 of a file whose graph was loaded, and agreed with its card, before: if it is this one, only
                the card is read.

        Raises:
            UsageError: an unknown engine, or none of those that are named is installed.
            ArtefactError: not an ONNX file, or one that the engine cannot run.
            CardError: no card, or one that contradicts the graph.
            CheckError: the golden self-check failed.
        """
        self.path = path
        card = None if checked else _card_of(path)
        self.digest = sha256_file(path)
        self.card = card or (glance_at_card(path) if self.digest == checked else _card_of(path))
        self._file = File(
            path=path,
            card=self.card,
            digest=self.digest,
            threads=threads or cores(),
            callers=callers,
            providers=providers,
            check=check,
        )
        chosen = choose(self._file, engine)
        self._engine = chosen.engine
        self.engine_reason = chosen.reason

    def with_threads(self, threads: int, *, callers: int = 1) -> Predictor:
        """The same file loaded once more into the same engine, without its card and digest being read again.

        Args:
            threads: of one inference.
            callers: see the constructor.

        Raises:
            ArtefactError: the engine cannot run it.
            CheckError: the golden self-check failed.
        """
        found = copy.copy(self)
        found._engine = replace(self._file, threads=threads, callers=callers).load(self.engine)
        return found

    @property
    def engine(self) -> str:
        """What computes, and in which precision: a name of zoo.artefact.engines.runtimes."""
        return self._engine.name

    @property
    def on_gpu(self) -> bool:
        """Whether a device other than the processor computes."""
        return self._engine.on_gpu

    def logits(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Raw outputs float32 [B, K] of preprocessed images float32 [B, C, H, W]."""
        return self._engine.logits(images)

    def probabilities(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Calibrated probabilities float32 [B, K] of preprocessed images float32 [B, C, H, W]."""
        return softmax(self.logits(images), self.card.use.temperature)

    def predict(self, images: Sequence[bytes], *, top: int = 5) -> list[Prediction]:
        """Answer image files with their `top` most probable labels.

        Raises:
            ImageError: one of them cannot be decoded.
        """
        if not images:
            return []
        return self.answers(self.probabilities(batch(images, self.card.use.input)), top=top)

    def answers(self, probabilities: npt.NDArray[np.float32], *, top: int = 5) -> list[Prediction]:
        """Turn probabilities [B, K] into labels, best first; ties go to the earlier label."""
        return ranked(probabilities, self.card.use.labels, top=top)


def _card_of(path: Path) -> Card:
    from zoo.artefact.onnx_file import read_card  # onnx takes memory that a server of checked files does without

    return read_card(path)


def ranked(probabilities: npt.NDArray[np.float32], labels: Sequence[str], *, top: int = 5) -> list[Prediction]:
    """Turn probabilities [B, K] of K labels into the `top` of them, best first; ties go to the earlier label."""
    return [
        Prediction(
            labels=tuple(labels[column] for column in columns),
            probabilities=tuple(float(row[column]) for column in columns),
        )
        for row, columns in zip(probabilities, best(probabilities, top=top), strict=True)
    ]


def best(probabilities: npt.NDArray[np.float32], *, top: int) -> npt.NDArray[np.intp]:
    """Columns of the `top` highest of K probabilities: [B, min(top, K)] of [B, K], in the order of :func:`ranked`."""
    return np.argsort(-probabilities, axis=1, kind="stable")[:, :top]


def draw_golden(predictor: Predictor) -> Golden:
    """See zoo.artefact.engines.golden.draw_golden."""
    return golden.draw_golden(predictor.logits, predictor.card)
