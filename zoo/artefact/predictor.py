"""ONNX file to answers: load, self-check, predict. The only way in which artefacts are run, and free of torch.

Serving, accuracy, latency and the exporter's parity check all run a graph through :class:`Predictor`, so what is
measured is what is served. `B` is the batch size, `K` the number of labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from zoo.artefact.card import Card, Golden
from zoo.artefact.onnx_file import read_card
from zoo.artefact.preprocess import GOLDEN_RULE, batch, golden_image, preprocess
from zoo.base.errors import ArtefactError, CheckError
from zoo.base.files import sha256_file
from zoo.base.machine import cores

__all__ = ["Prediction", "Predictor", "default_providers", "draw_golden", "softmax", "tolerance"]

ort.set_default_logger_severity(3)

_GOLDEN_CANDIDATES = 16
_SPIN_US = "500"
"""Microseconds: in a loop and after pauses of 2 ms as fast as spinning without an end, and an idle core soon rests."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one image."""

    labels: tuple[str, ...]
    """Best first."""
    probabilities: tuple[float, ...]
    """One per label above, calibrated by the card's temperature."""


def softmax(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float32]:
    """Probabilities float32 [B, K] of logits [B, K] divided by `temperature`."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)
    powers = np.exp(scaled)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float32)


def tolerance(card: Card) -> float:
    """How far golden probabilities may be off: INT8 and FP16 kernels differ between processors, FP32 ones hardly.

    Of a thousand labels none may be probable for a drawn image, so that a fixed number would let everything pass.
    """
    most = {"int8": 0.03, "float16": 0.01}.get(card.inform.precision, 1e-3)
    return min(most, max(card.use.golden.probabilities) / 4) if card.use.golden else most


def default_providers() -> list[str]:
    """CUDA where this ONNX Runtime has it and the machine has an NVIDIA device; else the CPU."""
    if "CUDAExecutionProvider" in ort.get_available_providers() and Path("/dev/nvidiactl").exists():
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


class Predictor:
    """One ONNX artefact, loaded and checked.

    Calls may come from several threads. `card`, `digest` (SHA-256 of the file) and `path` say what is loaded.
    """

    def __init__(
        self, path: Path, *, threads: int | None = None, check: bool = True, providers: Sequence[str] | None = None
    ) -> None:
        """Load the file at `path`.

        Args:
            path: an ONNX file with a card.
            threads: threads of one inference; default: the cores this process may use.
            check: run the golden self-check. Only a stage that is about to record the golden answer goes without.
            providers: ONNX Runtime execution providers; default: :func:`default_providers`.

        Raises:
            ArtefactError: not an ONNX file, or one that ONNX Runtime cannot run.
            CardError: no card, or one that contradicts the graph.
            CheckError: the golden self-check failed.
        """
        self.path = path
        self.card = read_card(path)
        self.digest = sha256_file(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        options.inter_op_num_threads = 1
        # Threads that wait for their part of an inference spin, which is up to twice as fast as sleeping; those of an
        # idle session must not burn the cores that decode the next image or run another model (by default for 30 ms).
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
        try:
            self._session = ort.InferenceSession(str(path), options, providers=list(providers or default_providers()))
        except Exception as error:  # ONNX Runtime's exceptions have no common public base class
            raise ArtefactError(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {error}") from error
        if check:
            self._check_golden()

    @property
    def on_gpu(self) -> bool:
        """Whether a device other than the processor computes."""
        return bool(self._session.get_providers()[0] != "CPUExecutionProvider")

    def logits(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Raw outputs float32 [B, K] of preprocessed images float32 [B, C, H, W]."""
        (output,) = self._session.run([self.card.use.output.name], {self.card.use.input.name: images})
        return np.asarray(output, dtype=np.float32)

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
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            Prediction(
                labels=tuple(self.card.use.labels[column] for column in columns),
                probabilities=tuple(float(row[column]) for column in columns),
            )
            for row, columns in zip(probabilities, order, strict=True)
        ]

    def _check_golden(self) -> None:
        golden = self.card.use.golden
        if golden is None:
            raise ArtefactError(
                f"{self.path}: its card has no golden self-check; write it again with `pocketzoo export`"
            )
        if golden.rule != GOLDEN_RULE:
            raise CheckError(f"{self.path}: golden rule {golden.rule!r} is unknown, this version draws {GOLDEN_RULE!r}")
        (found,) = self.probabilities(preprocess(golden_image(golden.seed), self.card.use.input)[None])
        expected = np.asarray(golden.probabilities)
        worst = float(np.abs(found - expected).max())
        labels, allowed = self.card.use.labels, tolerance(self.card)
        second, first = np.sort(expected)[-2:]
        # Where two labels are about equally probable, rounding decides which one is first.
        other = first - second > allowed and found.argmax() != expected.argmax()
        if not worst <= allowed or other:
            raise CheckError(
                f"{self.path}: golden self-check failed: expected {labels[int(expected.argmax())]!r} within "
                f"{allowed:.2g}, got {labels[int(found.argmax())]!r}, off by {worst:.2g}; "
                "this machine computes something else than the one that wrote the file; export it again here"
            )


def draw_golden(predictor: Predictor) -> Golden:
    """Record the answer to the golden image, of several, on which the model is most decided.

    An image near a decision boundary would fail the check on another instruction set without anything being wrong.
    """
    pictures = [preprocess(golden_image(seed), predictor.card.use.input) for seed in range(_GOLDEN_CANDIDATES)]
    probabilities = np.concatenate([predictor.probabilities(picture[None]) for picture in pictures])
    best_two = np.sort(probabilities, axis=1)[:, -2:]
    seed = int(np.argmax(best_two[:, 1] - best_two[:, 0]))
    return Golden(rule=GOLDEN_RULE, seed=seed, probabilities=tuple(round(float(p), 6) for p in probabilities[seed]))
