"""Images are PNG files, written atomically, the same each time."""

from __future__ import annotations

import pytest
from PIL import Image

from zoo.base.figures import axes


def draw(path, title="title"):
    with axes(path, width=4, height=3) as plot:
        plot.plot([1, 2], [3, 4])
        plot.set_title(title)


def test_a_picture(tmp_path):
    path = tmp_path / "folder" / "a.png"
    draw(path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 400 <= image.width <= 520
    first = path.read_bytes()
    draw(path)
    assert path.read_bytes() == first
    draw(path, "another")
    assert path.read_bytes() != first


def test_a_failing_drawing_leaves_the_old_picture(tmp_path):
    path = tmp_path / "a.png"
    draw(path)
    first = path.read_bytes()
    with pytest.raises(ZeroDivisionError), axes(path) as plot:
        plot.plot([1 / 0])
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_a_class_name_in_a_script_without_glyphs(tmp_path):
    draw(tmp_path / "a.png", "\N{CJK UNIFIED IDEOGRAPH-732B}")
    assert (tmp_path / "a.png").is_file()


def test_a_dollar_is_no_formula(tmp_path):
    with axes(tmp_path / "a.png", width=4, height=3) as plot:
        plot.set_title(r"a$x_{1$<i>[red]|b.jpg")
        plot.set_xlabel("US$ and A$ price")
        plot.set_xticks([0, 1], ["$x_{", "plain"])
    assert (tmp_path / "a.png").is_file()


def test_powers_of_ten_stay_formulas(tmp_path):
    with axes(tmp_path / "a.png", width=4, height=3) as plot:
        plot.plot([1e-6, 1e3], [1, 2])
        plot.set_xscale("log")
    assert all(label.get_parse_math() for label in plot.get_xticklabels() if "mathdefault" in label.get_text())
    assert any("mathdefault" in label.get_text() for label in plot.get_xticklabels())
