"""Which images are drawn."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from tests.zoo.explain.answered import answered
from zoo.explain.predictions.grid import draw_predictions, sample_places

TRUTH = np.repeat(np.arange(10), 20)


def test_the_labels_in_turn() -> None:
    places = sample_places(TRUTH, 200, count=30, seed=0)
    assert TRUTH[places].tolist() == list(range(10)) * 3
    assert len(set(places.tolist())) == 30


def test_the_seed_draws() -> None:
    first = sample_places(TRUTH, 200, count=30, seed=0).tolist()
    assert sample_places(TRUTH, 200, count=30, seed=0).tolist() == first
    assert sample_places(TRUTH, 200, count=30, seed=1).tolist() != first


def test_more_labels_than_places_and_rare_labels() -> None:
    many = sample_places(np.arange(1000), 1000, count=30, seed=0)
    assert many.max() > 500  # not the first thirty labels
    rare = sample_places(np.array([0] * 50 + [1]), 51, count=10, seed=0)
    assert Counter(rare.tolist())[50] == 1
    assert len(rare) == 10


def test_without_labels_and_fewer_pictures() -> None:
    assert sample_places(None, 4, count=30, seed=0).tolist() == [0, 1, 2, 3]
    places = sample_places(None, 100, count=10, seed=0)
    assert places.tolist() == sorted(set(places.tolist()))
    assert len(places) == 10


def test_three_rows_of_ten(tmp_path: Path) -> None:
    path = tmp_path / "predictions.png"
    draw_predictions(path, answered(np.eye(3)[[0, 1, 2] * 10], [0, 1, 1] * 10))
    with Image.open(path) as image:
        assert 2 < image.width / image.height < 4
