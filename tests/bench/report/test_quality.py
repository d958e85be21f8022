"""Calibration and worst errors against values counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from bench.report.quality import judge, reliability, worst_errors
from tests.zoo.factories import make_card, make_dataset
from zoo.training.evaluate import calibration_error

DATASET = make_dataset(40)
SAMPLES = DATASET.splits["validation"][:4]
USE = make_card().use


def logits_for(rows: list[list[float]]) -> np.ndarray:
    return np.log(np.array(rows, dtype=np.float32))


def test_bins_by_hand() -> None:
    # Confidences 0.5 (right), 0.55 (wrong), 0.95 (right), 1.0 (right), in five bins that have their upper ends.
    rows = np.array([[0.5, 0.3, 0.2], [0.55, 0.25, 0.2], [0.95, 0.05, 0.0], [1, 0, 0]], dtype=np.float32)
    labels = np.array([0, 1, 0, 0])
    found = reliability(rows, labels, bins=5)
    assert [entry.n for entry in found] == [0, 0, 2, 0, 2]
    assert (found[2].accuracy, found[2].confidence) == (0.5, pytest.approx(0.525))
    assert (found[0].accuracy, found[4].accuracy) == (None, 1.0)
    assert found[4].confidence == pytest.approx(0.975)
    gap = sum(entry.n * abs(entry.accuracy - entry.confidence) for entry in found if entry.n) / 4  # type: ignore[operator]
    assert gap == pytest.approx(calibration_error(rows, labels, bins=5))


def test_worst_errors_come_first_and_right_answers_do_not() -> None:
    logits = logits_for([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.9, 0.02, 0.08], [0.1, 0.8, 0.1]])
    found = worst_errors(logits, np.array([0, 1, 1, 1]), SAMPLES, USE, count=12)
    assert [error.name for error in found] == [SAMPLES[2].name, SAMPLES[1].name]
    assert [error.loss for error in found] == pytest.approx([-np.log(0.02), -np.log(0.3)], rel=1e-4)
    assert (found[0].truth, found[0].answer) == (USE.labels[1], USE.labels[0])
    assert [label for label, _ in found[0].top] == [USE.labels[0], USE.labels[2], USE.labels[1]]
    assert found[0].picture.startswith(b"\x89PNG")
    assert len(worst_errors(logits, np.array([0, 1, 1, 1]), SAMPLES, USE, count=1)) == 1


def test_labels_without_images_are_left_out_and_the_worst_goes_first() -> None:
    logits = logits_for([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.9, 0.05, 0.05]])
    done = judge(logits, np.array([0, 1, 1, 0]), SAMPLES, USE)
    assert [row.label for row in done.classes] == [USE.labels[1], USE.labels[0]]
    assert done.confusion.tolist() == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert (done.wrong, len(done.errors)) == (1, 1)
