"""What an artefact answers, and how it is written at an image."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.zoo.explain.answered import answered
from tests.zoo.factories import (
    encode,
    make_card,
    make_dataset,
    make_input,
    make_samples,
    photo_input,
    picture,
    write_artefact,
)
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import batch
from zoo.base.errors import ImageError
from zoo.data.image_set import labelled, named
from zoo.explain.panels import NEUTRAL, RIGHT, WRONG, Panel
from zoo.explain.predictions.answers import answer, grid, percent, seen, told


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.0, "0%"), (0.001, "<1%"), (0.614, "61%"), (0.99, "99%"), (0.9951, ">99%"), (1.0, "100%")],
)
def test_percent(probability: float, text: str) -> None:
    assert percent(probability) == text


def test_right_wrong_and_unknown_differ_in_mark_colour_and_lines() -> None:
    logits = np.log([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]])
    known = answered(logits, [0, 2])
    right, wrong, unknown = told(known, 0), told(known, 1), told(answered(logits), 0, more="first")
    assert (right.title, right.colour) == ("✓ 70% cat", RIGHT)
    assert (wrong.title, wrong.colour) == ("✗ 70% cat\ntrue: 10% hen", WRONG)
    assert (unknown.title, unknown.colour) == ("first\n70% cat\n20% dog", NEUTRAL)
    assert right.framed
    assert wrong.framed


def test_probabilities_are_calibrated() -> None:
    plain = answered([[2.0, 0.0, 0.0]], [0])
    use = dataclasses.replace(plain.card.use, temperature=2.0)
    cool = dataclasses.replace(plain, card=dataclasses.replace(plain.card, use=use))
    assert cool.probabilities[0, 0] == pytest.approx(np.e / (np.e + 2), abs=1e-6)
    assert told(cool, 0).title == "✓ 58% cat"


def test_a_grey_picture_is_shown_in_three_channels() -> None:
    (sample,) = make_samples(1)
    array = seen(sample, make_card(spec=make_input(16, "L")))
    assert array.shape == (16, 16, 3)
    assert (array[..., 0] == array[..., 2]).all()


def test_rows_of_a_grid() -> None:
    panel = Panel(image=picture())
    assert [len(row) for row in grid([panel] * 12, 5)] == [5, 5, 5]
    assert grid([panel] * 12, 5)[-1] == [panel, panel, None, None, None]
    assert grid([panel], 10) == [[panel, None, None]]


def test_answers_to_chosen_pictures_of_a_data_set(tmp_path: Path) -> None:
    artefact = tmp_path / "tiny" / "model.onnx"
    write_artefact(artefact)
    dataset = make_dataset()
    found = answer(artefact, read_card(artefact), labelled(dataset, "validation"), [7, 2])
    chosen = [dataset.splits["validation"][place] for place in (7, 2)]
    assert list(found.samples) == chosen
    assert found.truth is not None
    assert found.truth.tolist() == [sample.label for sample in chosen]
    expected = Predictor(artefact).logits(batch([sample.read() for sample in chosen], found.card.use.input))
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)
    assert (found.name, found.source) == ("tiny/model.onnx", "tiny, validation split")


def test_a_picture_that_is_too_elongated_is_named(tmp_path: Path) -> None:
    path = tmp_path / "strip.png"
    path.write_bytes(encode(picture(0, 1, 200_000)))
    with pytest.raises(ImageError, match=r"strip\.png: .*elongated"):
        seen(named([path]).samples[0], make_card(spec=photo_input(32, 32)))


def test_no_torch_for_an_onnx_file() -> None:
    code = (
        "import sys, zoo.explain.predictions.answers, zoo.training.parents, zoo.main; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
