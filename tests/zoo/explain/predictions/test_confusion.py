"""The confusion matrix and the most confused pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from zoo.explain.predictions.confusion import (
    MOST,
    Pair,
    confusion_counts,
    draw_confusion,
    most_confused,
    write_confusion,
)

LABELS = ("cat", "dog", "hen")
COUNTS = np.array([[5, 2, 0], [1, 8, 0], [0, 2, 1]], dtype=np.int64)


def drawn(counts: np.ndarray, labels: tuple[str, ...]):
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw_confusion(axes, counts, labels)
    return axes


def test_counts_by_true_label_and_answer() -> None:
    counts = confusion_counts(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 2]), 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert counts.dtype == np.int64


def test_pairs_with_the_most_images_first_then_the_larger_share() -> None:
    pairs = most_confused(COUNTS, LABELS, 5)
    assert pairs == (
        Pair(true="hen", answered="dog", count=2, n=3),
        Pair(true="cat", answered="dog", count=2, n=7),
        Pair(true="dog", answered="cat", count=1, n=9),
    )
    assert pairs[0].share == 2 / 3
    assert most_confused(COUNTS, LABELS, 1) == pairs[:1]
    assert most_confused(np.diag([1, 2, 3]), LABELS, 5) == ()


def test_cells_are_coloured_by_row_and_numbered() -> None:
    axes = drawn(COUNTS, LABELS)
    np.testing.assert_allclose(axes.images[0].get_array(), COUNTS / COUNTS.sum(axis=1, keepdims=True))
    assert sorted(text.get_text() for text in axes.texts) == ["1", "1", "2", "2", "5", "8"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LABELS)


def test_labels_that_do_not_occur_are_left_out() -> None:
    counts = np.zeros((1000, 1000), dtype=np.int64)
    counts[3, 3], counts[3, 700] = 4, 1
    axes = drawn(counts, tuple(f"label {number}" for number in range(1000)))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["label 3", "label 700"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.8, 0.2], [0, 0]])


def test_of_many_labels_the_most_confused_and_a_column_for_the_rest() -> None:
    counts = np.diag(np.full(100, 7))
    counts[60, 90] = 3
    counts[60, 95] = 2
    axes = drawn(counts, tuple(f"n{number}" for number in range(100)))
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert len(rows) == MOST
    assert {"n60", "n90", "n95"} <= set(rows)
    assert [label.get_text() for label in axes.get_xticklabels()] == [*rows, "another label"]
    shares = np.asarray(axes.images[0].get_array())
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert "30 of 100" in axes.get_ylabel()


def test_a_picture_with_long_labels_and_heading(tmp_path: Path) -> None:
    path = tmp_path / "confusion.png"
    labels = tuple(f"{name}, a label that goes on and on and on" for name in LABELS)
    write_confusion(path, COUNTS, labels, heading="a heading " * 20)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width < 900
