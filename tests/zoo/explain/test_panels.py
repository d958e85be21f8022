"""What a page of images must not hide: the order of heat, whatever lies below it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.explain.panels import Panel, _even, draw_panels


def _brightness(path: Path, panel: Panel) -> np.ndarray:
    """The brightness of the drawn panel's columns: left, right."""
    draw_panels(path, [[panel]], edge=3.0)
    with Image.open(path) as image:
        page = np.asarray(image.convert("L"), dtype=np.float64)
    rows, columns = np.nonzero(page < 250)
    inside = page[rows.min() : rows.max(), columns.min() : columns.max()]
    middle = inside[len(inside) // 2]
    return middle[[len(middle) // 10, -len(middle) // 10]]


@pytest.mark.parametrize("hot", ["left", "right"])
def test_the_hottest_place_is_the_brightest_on_black_and_on_white(tmp_path: Path, hot: str) -> None:
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[:, 16:] = 255
    heat = np.array([[1.0, 0.0]] if hot == "left" else [[0.0, 1.0]], dtype=np.float32)
    left, right = _brightness(tmp_path / "heat.png", Panel(image=picture, overlay=heat))
    assert (left > right + 60) if hot == "left" else (right > left + 60)


def test_lines_of_a_heading_are_about_as_long() -> None:
    assert _even("one two three four five six", 24).split("\n") == ["one two three", "four five six"]
    assert _even("short", 24) == "short"
    assert _even("", 24) == ""
