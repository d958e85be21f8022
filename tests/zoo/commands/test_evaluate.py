"""`pocketzoo evaluate`: overall, per class, of ONNX files and of checkpoints."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from click.testing import Result
from typer.testing import CliRunner

from tests.zoo.factories import LABELS, encode, make_card, make_input, picture, write_artefact
from zoo.artefact.card import Card
from zoo.artefact.predictor import Predictor, softmax
from zoo.base.errors import ArtefactError, DataError, UsageError
from zoo.base.files import sha256_file
from zoo.commands.evaluate import evaluate
from zoo.data.catalogue import open_dataset
from zoo.data.splits import Thin
from zoo.networks import checkpoint
from zoo.networks.registry import build
from zoo.training.evaluate import accuracy, calibration_error, logits_of, per_class
from zoo.training.workspace import DataSource, Notes, write_notes

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
    expected = accuracy(logits, truth, dataset=pictures.name, split="test", engine="onnxruntime")
    assert {key: row[key] for key in dataclasses.asdict(expected)} == dataclasses.asdict(expected)
    assert row["calibration_error"] == calibration_error(softmax(logits, row["temperature"]), truth)
    assert (row["artefact"], row["file"], row["digest"]) == ("tiny", "model.onnx", predictor.digest)
    assert row["engine_reason"] == "onnxruntime: asked for with POCKETZOO_ENGINE"
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


def _export(folder: Path, name: str, parent: str) -> Path:
    """An ONNX file in a folder, as if it were exported from the checkpoint of this digest."""
    card = make_card(stages=("train", "export"))
    trained, exported = card.lineage
    write_artefact(
        folder / name, dataclasses.replace(card, lineage=(trained, dataclasses.replace(exported, parent=parent)))
    )
    return folder / name


def test_an_onnx_file_goes_before_its_checkpoint(trained: Path, pictures: Path) -> None:
    _export(trained, "model.onnx", sha256_file(trained / "model.safetensors"))
    assert _json(trained, "--data", pictures)["file"] == "model.onnx"


def test_onnx_files_of_an_earlier_training_are_left_out(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = sha256_file(trained / "model.safetensors")
    onnx = _export(trained, "model.onnx", "1" * 64)
    _export(trained, "model.int8.onnx", "1" * 64)
    with capsys.disabled():
        done = _run(trained, "--data", pictures)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["only-trained/model.safetensors"]
    assert "model.onnx is of an earlier training; pocketzoo export writes it anew" in done.stderr
    assert "model.int8.onnx is of an earlier training; pocketzoo export --int8 writes it anew" in done.stderr
    named = _run(onnx, "--data", pictures)
    assert named.stdout.startswith("only-trained/model.onnx: "), "asked for by name"
    assert "is of an earlier training" in named.stderr
    _export(trained, "model.onnx", digest)
    done = _run(trained, "--data", pictures)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["only-trained/model.onnx"]
    assert "model.onnx is of" not in done.stderr
    assert "model.int8.onnx is of" in done.stderr


def test_data_that_have_changed_are_refused(trained: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "birds"
    shutil.copytree(pictures, folder)
    source = DataSource(name=str(folder), seed=3, thin=Thin(classes=("cat",), keep=0.5))
    write_notes(trained, Notes(role="model", data=source, test=source))
    model, card = checkpoint.load(trained / "model.safetensors")
    entry = dataclasses.replace(card.lineage[0], config={"data": source.open().describe()})
    checkpoint.save(model, dataclasses.replace(card, lineage=(entry,)), trained / "model.safetensors")
    named = _json(trained, "--data", folder, "--split", "test")
    assert named == _json(trained, "--split", "test") | {"time": named["time"]}, "seed and share are run.json's"
    (folder / "cat" / "new.png").write_bytes(encode(picture(9, 12, 12)))
    open_dataset.cache_clear()
    for arguments in ((), ("--data", folder)):
        with pytest.raises(DataError, match=r"birds has changed since tiny was trained on it"):
            _run(trained, *arguments)


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
