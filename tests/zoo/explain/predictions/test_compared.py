"""The images that a compressed file answers otherwise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.zoo.explain.answered import answered
from tests.zoo.factories import make_card
from zoo.base.errors import DataError
from zoo.explain.predictions.answers import Answers
from zoo.explain.predictions.compared import compare_changes, draw_changes, sentence, shown

TRUTH = [0, 0, 0, 1, 2, 2]
BEFORE = answered([[4, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [3, 0, 0], [0, 0, 5]], TRUTH, name="tiny/model.onnx")
AFTER = answered([[0, 4, 0], [0, 1, 0], [1, 0, 0], [0, 3, 0], [0, 3, 0], [0, 0, 5]], TRUTH, name="tiny/model.int8.onnx")


def without_truth(answers: Answers) -> Answers:
    return dataclasses.replace(answers, truth=None)


def test_groups_with_the_largest_movement_first() -> None:
    found = compare_changes(BEFORE, AFTER)
    assert found.groups == {"lost": (0, 1), "gained": (3,), "different": (4,), "moved": (2, 5)}
    assert (found.changed, found.agreement) == (4, pytest.approx(1 / 3))
    assert found.paired is not None
    assert (found.paired.lost, found.paired.gained) == (2, 1)
    high, low = (np.e**power / (np.e**power + 2) for power in (2, 1))
    assert found.movement[2] == pytest.approx(high - low, abs=1e-6)
    assert sentence(found) == (
        "tiny/model.int8.onnx against tiny/model.onnx on 6 images of tiny, validation split: 4 answers differ "
        f"(agreement 33.3%): 2 lost, 1 gained, 1 wrong both times; accuracy -16.67 points "
        f"(95% interval {found.paired.low:+.2f} to {found.paired.high:+.2f})"
    )


def test_without_labels() -> None:
    found = compare_changes(without_truth(BEFORE), without_truth(AFTER))
    assert found.groups == {"changed": (0, 3, 4, 1), "moved": (2, 5)}
    assert found.paired is None
    assert sentence(found).endswith("4 answers differ (agreement 33.3%)")


def test_places_are_shared_between_the_groups() -> None:
    found = compare_changes(BEFORE, AFTER)
    assert shown(found, 3) == {"lost": (0,), "gained": (3,), "different": (4,)}
    assert shown(found, 4) == {"lost": (0, 1), "gained": (3,), "different": (4,)}
    assert shown(found, 5)["moved"] == (2,)
    assert shown(found, 1) == {"lost": (0,)}


def test_nothing_changed(tmp_path: Path) -> None:
    found = compare_changes(BEFORE, dataclasses.replace(BEFORE, name="tiny/model.fp16.onnx"))
    assert found.changed == 0
    assert "all 6 answers are the same" in sentence(found)
    assert shown(found, 4) == {"moved": (0, 1, 2, 3)}
    draw_changes(tmp_path / "changes.png", found)
    assert (tmp_path / "changes.png").is_file()


def test_the_page(tmp_path: Path) -> None:
    path = tmp_path / "changes.png"
    draw_changes(path, compare_changes(BEFORE, AFTER))
    with Image.open(path) as image:
        assert image.height > image.width


def test_other_labels() -> None:
    other = dataclasses.replace(AFTER, card=make_card(("cat", "dog", "cow")))
    with pytest.raises(DataError, match="only files with the same labels can be compared"):
        compare_changes(BEFORE, other)
