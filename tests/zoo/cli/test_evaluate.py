"""`pocketzoo evaluate`: overall, per class, of ONNX files and of checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from tests.zoo.factories import LABELS, encode, make_card, make_input, picture, write_artefact
from zoo import checkpoint
from zoo.card import Card
from zoo.cli.evaluate import evaluate
from zoo.datasets.registry import open_dataset
from zoo.errors import ArtefactError, DataError, UsageError
from zoo.evaluate import accuracy, calibration_error, logits_of, per_class
from zoo.graph import read_card
from zoo.models.registry import build
from zoo.predictor import Predictor, softmax

APP = typer.Typer()
APP.command()(evaluate)

COUNTS = {"cat": 30, "dog": 30, "hen": 8}


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(APP, [str(argument) for argument in arguments], catch_exceptions=False)


def _json(*arguments: str | Path) -> dict[str, Any]:
    return json.loads(_run(*arguments, "--json").output)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in three folders; hens are rare."""
    folder = tmp_path_factory.mktemp("birds")
    for number, (label, count) in enumerate(COUNTS.items()):
        (folder / label).mkdir()
        for index in range(count):
            image = picture(1000 * number + index, 12, 12) // 2 + 30 * number
            (folder / label / f"{index}.png").write_bytes(encode(image))
    return folder


@pytest.fixture
def trained(artefact: Path) -> Path:
    """A folder with a checkpoint and no ONNX file."""
    torch.manual_seed(0)
    model = build("lenet", classes=3, channels=3)
    path = artefact.parent.parent / "only-trained" / "model.safetensors"
    checkpoint.save(model, _thinned(make_card(spec=make_input(28), stages=("train",)), ["hen", "owl"]), path)
    return path.parent


def _thinned(card: Card, classes: list[str]) -> Card:
    entry = dataclasses.replace(card.lineage[0], config={"data": {"name": "birds", "thin": {"classes": classes}}})
    return dataclasses.replace(card, lineage=(entry, *card.lineage[1:]))


def test_numbers_are_the_predictors(artefact: Path, pictures: Path) -> None:
    row = _json(artefact.parent, "--data", pictures, "--split", "test")
    predictor = Predictor(artefact)
    samples = open_dataset(str(pictures)).splits["test"]
    truth = torch.tensor([sample.label for sample in samples]).numpy()
    logits = logits_of(predictor.logits, samples, predictor.card.use.input)
    expected = accuracy(logits, truth, dataset=pictures.name, split="test")
    assert {key: row[key] for key in dataclasses.asdict(expected)} == dataclasses.asdict(expected)
    assert row["calibration_error"] == calibration_error(softmax(logits, row["temperature"]), truth)
    assert (row["artefact"], row["file"], row["digest"]) == ("tiny", "model.onnx", predictor.digest)
    assert "classes" not in row


def test_validation_is_the_default_and_every_file_has_a_line(artefact: Path, pictures: Path) -> None:
    write_artefact(artefact.parent / "model.int8.onnx", scale=1.0)
    lines = _run(artefact.parent, "--data", pictures).output.splitlines()
    assert [line.split(":")[0] for line in lines] == ["tiny/model.onnx", "tiny/model.int8.onnx"]
    for line in lines:
        assert "validation top-1 " in line
        assert "calibration error " in line


def test_classes_come_with_the_worst_first_and_the_rare_apart(artefact: Path, pictures: Path) -> None:
    found = _json(artefact, "--data", pictures, "--classes", "--split", "train")
    assert sorted(row["label"] for row in found["classes"]) == sorted(LABELS)
    recalls = [row["recall"] for row in found["classes"]]
    assert recalls == sorted(recalls)
    assert {row["label"]: row["rare"] for row in found["classes"]} == {"cat": False, "dog": False, "hen": True}
    macro = found["macro"]
    assert macro["all"]["recall"] == pytest.approx(sum(recalls) / 3)
    assert macro["rare"]["n"] + macro["others"]["n"] == macro["all"]["n"] == found["n"]
    predictor = Predictor(artefact)
    samples = open_dataset(str(pictures)).splits["train"]
    logits = logits_of(predictor.logits, samples, predictor.card.use.input)
    rows = per_class(logits, torch.tensor([sample.label for sample in samples]).numpy(), LABELS)
    expected = {row.label: dataclasses.asdict(row) for row in rows}
    assert {row["label"]: {k: v for k, v in row.items() if k != "rare"} for row in found["classes"]} == expected


def test_the_table_shows_what_json_says(artefact: Path, pictures: Path) -> None:
    found = _json(artefact, "--data", pictures, "--classes")
    text = _run(artefact, "--data", pictures, "--classes").output
    assert "hen (rare)" in text
    assert text.index("cat") < text.index("hen (rare)") < text.index("mean of all (3)")
    assert "mean of rare (1)" in text
    for row in found["classes"]:
        line = next(line for line in text.splitlines() if row["label"] in line)
        assert f"{row['recall']:.2%}" in line
        assert f"{row['precision']:.2%}" in line


def test_rare_classes_can_be_named(artefact: Path, pictures: Path) -> None:
    found = _json(artefact, "--data", pictures, "--rare", "cat", "--rare", "dog")
    assert {row["label"] for row in found["classes"] if row["rare"]} == {"cat", "dog"}
    with pytest.raises(UsageError, match=r"unknown class or group of .* 'cow'"):
        _run(artefact, "--data", pictures, "--rare", "cow")


def test_a_checkpoint_does_where_there_is_no_onnx_file(trained: Path, pictures: Path) -> None:
    found = _json(trained, "--data", pictures, "--classes")
    assert (found["artefact"], found["file"]) == ("only-trained", "model.safetensors")
    model, card = checkpoint.load(trained / "model.safetensors")
    samples = open_dataset(str(pictures)).splits["validation"]

    @torch.inference_mode()
    def classify(inputs: Any) -> Any:
        return model(torch.from_numpy(inputs)).numpy()

    logits = logits_of(classify, samples, card.use.input)
    hits = sum(int(row.argmax()) == sample.label for row, sample in zip(logits, samples, strict=True))
    assert found["top1"] == hits / len(samples)
    assert found == _json(trained / "model.safetensors", "--data", pictures, "--classes") | {"time": found["time"]}
    # What the lineage says was thinned, as far as the data has it.
    assert {row["label"] for row in found["classes"] if row["rare"]} == {"hen"}


def test_an_onnx_file_goes_before_a_checkpoint(artefact: Path, trained: Path, pictures: Path) -> None:
    write_artefact(trained / "model.onnx", read_card(artefact))
    assert _json(trained, "--data", pictures)["file"] == "model.onnx"


def test_mistakes_get_a_sentence(artefact: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown split 'tests'; did you mean test\?"):
        _run(artefact, "--data", pictures, "--split", "tests")
    with pytest.raises(ArtefactError, match="no checkpoint at nothing"):
        _run("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtefactError, match=r"no checkpoint at .*empty.model\.safetensors; `pocketzoo train` writes"):
        _run(tmp_path / "empty")
    with pytest.raises(ArtefactError, match="add --data"):
        _run(artefact)
    with pytest.raises(DataError, match="does not know the label"):
        _run(artefact, "--data", "digits")
