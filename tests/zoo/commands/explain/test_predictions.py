"""`pocketzoo explain predictions`, `confusion`, `pairs`, `losses` and `changes`, as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from tests.bench.artefacts import family
from tests.zoo.factories import LABELS, encode, make_card, make_input, picture
from zoo.base.errors import ArtefactError, DataError, UsageError
from zoo.commands.explain import predictions as explain_answers
from zoo.commands.explain.group import explain
from zoo.networks import checkpoint
from zoo.networks.registry import build

LABELLED = ("confusion", "pairs", "losses")


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(explain, [str(argument) for argument in arguments], catch_exceptions=False)


def _json(*arguments: str | Path) -> dict[str, Any]:
    return json.loads(_run(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tinted noise in three folders; a tenth of it is the validation split."""
    folder = tmp_path_factory.mktemp("farm")
    for number, label in enumerate(LABELS):
        (folder / label).mkdir()
        for index in range(30):
            image = picture(1000 * number + index, 12, 12) // 2
            image[..., number] += 80
            (folder / label / f"{index}.png").write_bytes(encode(image))
    return folder


def test_predictions_of_a_split(artefact: Path, data: Path) -> None:
    found = _json("predictions", artefact, "--data", data, "--count", "4", "--seed", "3")
    assert found["file"] == "tiny/model.onnx"
    assert found["n"] == len(found["pictures"]) == 4
    assert {row["true"] for row in found["pictures"]} == set(LABELS)
    assert found["right"] == sum(row["true"] == row["answer"] for row in found["pictures"])
    with Image.open(artefact.parent / "explain" / "predictions.png") as image:
        assert image.format == "PNG"


def test_predictions_of_pictures(artefact: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.png"
    result = _run("predictions", artefact, "--images", data / "cat" / "0.png", "--images", data / "hen", "--out", out)
    assert "tiny/model.onnx: 30 images\n" in result.stdout
    assert out.is_file()
    (row,) = _json("predictions", artefact, "--images", data / "cat" / "0.png", "--out", out)["pictures"]
    assert row["file"] == "0.png"
    assert "true" not in row


def test_the_numbers_of_the_commands_agree(artefact: Path, data: Path) -> None:
    counts = np.array(_json("confusion", artefact, "--data", data)["counts"])
    wrong = int(counts.sum() - np.trace(counts))
    pairs = _json("pairs", artefact, "--data", data, "--count", "9")
    assert sum(pair["count"] for pair in pairs["pairs"]) == wrong == pairs["n"] - pairs["right"] > 0
    assert {(pair["true"], pair["n"]) for pair in pairs["pairs"]} <= set(zip(LABELS, counts.sum(axis=1), strict=True))
    losses = _json("losses", artefact, "--data", data, "--count", "1000")["losses"]
    assert len(losses) == counts.sum()
    assert sum(row["true"] != row["answer"] for row in losses) == wrong
    for row in losses:
        assert row["loss"] == pytest.approx(-np.log(row["probability_of_true"]), abs=1e-3)
    assert [row["loss"] for row in losses] == sorted((row["loss"] for row in losses), reverse=True)


def test_tables_and_sentences(artefact: Path, data: Path) -> None:
    assert "95% interval" in _run("confusion", artefact, "--data", data).stdout
    assert "answered" in _run("pairs", artefact, "--data", data).stdout
    text = _run("losses", artefact, "--data", data, "--count", "2").stdout
    assert "of the true label" in text
    assert text.rstrip().endswith("explain/losses.png")


def test_a_checkpoint_answers_where_there_is_no_onnx_file(tmp_path: Path, data: Path) -> None:
    card = make_card(spec=make_input(28), stages=("train",))
    checkpoint.save(build("lenet", classes=3, channels=3), card, tmp_path / "lenet" / "model.safetensors")
    result = _run("predictions", tmp_path / "lenet", "--data", data)
    assert "lenet/model.safetensors: " in result.stdout
    assert "there is no ONNX file; `pocketzoo export" in result.stderr


def test_changes_of_the_int8_file_and_of_the_pruned_one(output: Path, data: Path) -> None:
    paths = family(output)
    found = _json("changes", paths["int8"].parent, "--data", data)
    assert (found["file"], found["against"]) == ("cat/model.int8.onnx", "cat/model.onnx")
    assert found["changed"] == sum(len(found[group]) for group in ("lost", "gained", "different"))
    assert found["agreement"] == pytest.approx(1 - found["changed"] / found["n"])
    found = _json("changes", paths["pruned"], "--images", data)
    assert (found["file"], found["against"]) == ("cat-pruned/model.onnx", "cat/model.onnx")
    assert "right" not in found
    assert found["n"] == 90
    same = _run("changes", paths["parent"], "--against", paths["int8"].parent.parent / "cat-pruned", "--data", data)
    assert "cat/model.onnx against cat-pruned/model.onnx" in same.stdout


def test_a_pruned_artefact_is_compared_with_the_unpruned_one(output: Path, data: Path) -> None:
    paths = family(output)
    folder = paths["both"].parent
    found = _json("changes", folder, "--data", data)
    assert (found["file"], found["against"]) == ("cat-pruned/model.int8.onnx", "cat/model.onnx")
    found = _json("changes", folder, "--against", paths["pruned"], "--data", data)
    assert found["against"] == "cat-pruned/model.onnx"
    paths["parent"].unlink()
    result = _run("changes", folder, "--data", data)
    assert "cat-pruned/model.int8.onnx against cat-pruned/model.onnx" in result.stdout
    assert "cat-pruned/model.onnx was pruned, and what it was pruned from is not in" in result.stderr


def test_no_answer_changed(output: Path, data: Path) -> None:
    paths = family(output)
    copy = output / "copy" / "model.onnx"
    copy.parent.mkdir()
    copy.write_bytes(paths["parent"].read_bytes())
    text = _run("changes", copy, "--against", paths["parent"], "--data", data).stdout
    assert "answers are the same" in text
    assert "no answer changed; the image shows where the probabilities moved most" in text


@pytest.mark.parametrize("command", LABELLED)
def test_commands_that_need_labels(artefact: Path, data: Path, command: str) -> None:
    with pytest.raises(UsageError, match="needs images with labels, and those of --images are not known"):
        _run(command, artefact, "--images", data)
    with pytest.raises(ArtefactError, match="add --data with labels, which this needs"):
        _run(command, artefact)


def test_bad_input(artefact: Path, data: Path, output: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="add --data, or --images FOLDER for images without labels"):
        _run("predictions", artefact)
    with pytest.raises(UsageError, match="unknown split 'tests'; did you mean test"):
        _run("losses", artefact, "--data", data, "--split", "tests")
    with pytest.raises(UsageError, match=r"expected a name ending in \.png"):
        _run("confusion", artefact, "--data", data, "--out", tmp_path / "x.jpg")
    with pytest.raises(DataError, match="cannot decode"):
        _run("predictions", artefact, "--images", artefact)
    with pytest.raises(ArtefactError, match="no ONNX file at"):
        _run("predictions", tmp_path / "nothing")
    with pytest.raises(ArtefactError, match="name one with --against"):
        _run("changes", artefact, "--data", data)
    with pytest.raises(UsageError, match="the very file"):
        _run("changes", artefact, "--against", artefact.parent, "--data", data)


def test_the_commands_are_registered() -> None:
    names = {command.callback.__name__ for command in explain.registered_commands if command.callback}
    assert set(explain_answers.__all__) <= names
