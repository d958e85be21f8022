"""The images with the highest loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.zoo.explain.answered import answered
from zoo.explain.predictions.top_losses import draw_losses, top_losses

LOGITS = np.log([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]).astype(np.float32)
TRUTH = np.array([0, 2, 1, 2])


def test_highest_first() -> None:
    found = top_losses(LOGITS, TRUTH, 1.0, 3)
    assert [entry.place for entry in found] == [1, 2, 0]
    assert [entry.loss for entry in found] == pytest.approx([-np.log(p) for p in (0.1, 0.2, 0.7)], rel=1e-5)
    assert len(top_losses(LOGITS, TRUTH, 1.0, 9)) == 4


def test_the_temperature_calibrates() -> None:
    (worst,) = top_losses(LOGITS, TRUTH, 2.0, 1)
    roots = np.sqrt([0.7, 0.2, 0.1])
    assert worst.loss == pytest.approx(-np.log(roots[2] / roots.sum()), rel=1e-5)


def test_a_loss_beyond_the_least_float_is_finite() -> None:
    (worst,) = top_losses(np.array([[1000.0, 0.0]], dtype=np.float32), np.array([1]), 1.0, 1)
    assert worst.loss == pytest.approx(1000)


def test_the_page(tmp_path: Path) -> None:
    path = tmp_path / "losses.png"
    answers = answered(LOGITS, TRUTH)
    draw_losses(path, answers, top_losses(LOGITS, TRUTH, 1.0, 4))
    with Image.open(path) as image:
        assert image.width > image.height
