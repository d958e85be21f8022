"""`pocketzoo decoding`: what decoding large JPEG files small changes, and what the card then says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from compress.commands import decoding as command
from compress.commands.decoding import decoding
from tests.zoo.factories import encode, make_card, photo_input, picture, write_artefact
from zoo.artefact.card import Card, advance
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import decode, decode_for, least_edge
from zoo.base.errors import UsageError
from zoo.base.files import sha256_file
from zoo.data.catalogue import open_dataset
from zoo.training.evaluate import logits_of
from zoo.training.workspace import DataSource, Notes, write_notes

APP = typer.Typer()
APP.command()(decoding)

SPEC = photo_input(12, 16, "bicubic")
LARGE = 4 * 16


def _run(*arguments: str | Path | float) -> Result:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=False)


def _json(*arguments: str | Path | float) -> dict[str, Any]:
    return json.loads(_run(*arguments, "--json").stdout)


def _photo(seed: int, edge: int) -> np.ndarray:
    """Colours of a few pixels each, so that answers are decided by more than noise."""
    blocks = picture(seed, 4, 5) // 2 + np.array([60, 0, 0], np.uint8) * (seed % 3)
    return np.kron(blocks, np.ones((edge // 4, edge // 4, 1), np.uint8))


def _folder(root: Path, *, edge: int, count: int, kind: str = "JPEG") -> Path:
    for split, number in (("train", 2), ("validation", count), ("test", 2)):
        for place, label in enumerate(("cat", "dog", "hen")):
            (root / split / label).mkdir(parents=True)
            for index in range(number):
                data = encode(_photo(1000 * len(split) + 3 * index + place, edge), kind)
                (root / split / label / f"{index}.{kind.lower()}").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("photos"), edge=LARGE, count=40)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "tiny" / "model.onnx"
    write_artefact(path, make_card(spec=SPEC, stages=("train", "export")), size=12)
    return path


def test_it_is_on_where_the_budget_holds(graph: Path, photos: Path, output: Path) -> None:
    write_notes(graph.parent, Notes(role="model", data=DataSource(name=str(photos)), test=DataSource(name=str(photos))))
    before, digest = read_card(graph), sha256_file(graph)
    assert least_edge(SPEC) == 32
    row = _json(graph, "--max-drop", 100)
    after = read_card(graph)
    samples = open_dataset(str(photos)).splits["validation"]
    assert len(samples) == row["n"] == row["images"] == 120
    assert (row["on"], row["digest"]) == (True, digest)
    draft = after.use.input.jpeg_draft
    assert draft is not None and dataclasses.asdict(draft) == {
        "dataset": photos.name,
        "split": "validation",
        "digest": open_dataset(str(photos)).digest,
        "n": 120,
        "agreement": row["agreement"],
        "top1_before": row["before"]["top1"],
        "top1_after": row["after"]["top1"],
        "max_drop": 1.0,
    }
    # What the card says is what the file computes now.
    predictor = Predictor(graph, providers=("CPUExecutionProvider",))
    whole, small = (logits_of(predictor.logits, samples, card.use.input) for card in (before, after))
    truth = np.array([sample.label for sample in samples])
    assert not np.array_equal(whole, small)
    assert draft.top1_before == pytest.approx((whole.argmax(1) == truth).mean())
    assert draft.top1_after == pytest.approx((small.argmax(1) == truth).mean())
    assert draft.agreement == pytest.approx((whole.argmax(1) == small.argmax(1)).mean())
    metrics = after.metrics("validation")
    assert metrics is not None and (metrics.n, metrics.top1) == (120, draft.top1_after)
    assert after.use.reference is not None and sum(after.use.reference.histogram.values()) == 120
    assert after.lineage == before.lineage
    data = samples[0].read()
    assert decode_for(data, after.use.input).size == (40, 32) != decode(data).size == (80, 64)
    # Nothing has changed since, so nothing is written.
    digest = sha256_file(graph)
    assert "decoding small is on" in _run(graph, "--max-drop", 100).output
    assert sha256_file(graph) == digest


def test_other_images_say_nothing_about_the_cards_own_accuracy(graph: Path, photos: Path, output: Path) -> None:
    result = _run(graph.parent, "--images", photos, "--max-drop", 100)
    assert "run.json beside it names no data set" in result.output
    card = read_card(graph)
    assert card.use.input.jpeg_draft is not None
    assert (card.inform.metrics, card.use.reference) == ((), None)
    Predictor(graph)


def _worse(monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """Images decoded small get another answer: the first `lost` of those that were recognised."""
    real = command._compare

    def compare(predictor: Predictor, samples: Any) -> Any:
        found = real(predictor, samples)
        assert found is not None
        truth = np.eye(3, dtype=np.float32)[[samples[place].label for place in found.places]]
        small = truth.copy()
        small[:lost] = np.roll(truth[:lost], 1, axis=1)
        return dataclasses.replace(found, whole=truth, small=small)

    monkeypatch.setattr(command, "_compare", compare)


def test_the_budget_decides_and_can_switch_off_again(
    graph: Path, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _worse(monkeypatch, lost=3)
    digest = sha256_file(graph)
    result = _run(graph, "--images", photos, "--max-drop", 2.4)
    assert "decoding small is off: the budget is 2.4 points" in result.output
    assert "top-1 100.00%" in result.output and "97.50%" in result.output and "n = 120" in result.output
    assert sha256_file(graph) == digest
    row = _json(graph, "--images", photos, "--max-drop", 2.5)
    low, high = row["difference"]
    assert row["on"] and low < -0.025 < high
    assert read_card(graph).use.input.jpeg_draft is not None
    assert not _json(graph, "--images", photos)["on"]
    assert read_card(graph).use.input.jpeg_draft is None


@pytest.mark.parametrize(("edge", "kind"), [(LARGE - 4, "JPEG"), (LARGE, "PNG")])
def test_nothing_would_be_different(graph: Path, tmp_path: Path, output: Path, edge: int, kind: str) -> None:
    folder = _folder(tmp_path / "others", edge=edge, count=2, kind=kind)
    digest = sha256_file(graph)
    result = _run(graph, "--images", folder)
    assert "nothing would be different: none of the 6 validation images" in result.output
    assert f"a JPEG file whose shorter edge has {LARGE} pixels or more" in result.output
    assert sha256_file(graph) == digest


def test_a_few_images_are_not_enough(graph: Path, tmp_path: Path, output: Path) -> None:
    folder = _folder(tmp_path / "few", edge=LARGE, count=2)
    digest = sha256_file(graph)
    assert "is off: fewer than 100 images" in _run(graph, "--images", folder, "--max-drop", 100).output
    assert sha256_file(graph) == digest


@pytest.mark.parametrize("points", [-1, 101, "nan"])
def test_budgets_that_make_no_sense(graph: Path, points: float) -> None:
    with pytest.raises(UsageError, match="--max-drop: expected points of top-1, 0 to 100"):
        _run(graph, "--max-drop", points)


def test_a_child_is_measured_anew(graph: Path, photos: Path, output: Path) -> None:
    _run(graph, "--images", photos, "--max-drop", 100)
    card: Card = read_card(graph)
    entry = dataclasses.replace(card.lineage[-1], stage="quantize", parent=sha256_file(graph))
    assert advance(card, entry).use.input == dataclasses.replace(card.use.input, jpeg_draft=None)
