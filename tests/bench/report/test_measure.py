"""Reports: every number against the functions it comes from, the files they are written to, and what goes wrong."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.report import measure as report
from bench.report.compression_tables import busy_note, tables
from bench.report.json_document import document
from bench.report.measure import Report, artefact_files, measure_report
from bench.report.render import markdown
from bench.report.sections import sections
from compress.quantize.report import write_report
from tests.bench.artefacts import TRAIN, exported, family, write_checkpoint
from tests.conftest import run_cli
from tests.zoo.factories import encode, make_card, make_dataset, picture, write_artefact
from zoo.artefact.latency import LatencyConfig
from zoo.artefact.predictor import Predictor, softmax
from zoo.base.errors import ArtefactError, DataError, UsageError
from zoo.base.files import sha256_file
from zoo.base.statistics.intervals import Ratio
from zoo.base.statistics.paired import compare_answers, worst_losses
from zoo.data.folders.unlabelled import open_images
from zoo.data.image_set import ImageSet, labelled, truth
from zoo.training.evaluate import calibration_error, logits_of
from zoo.training.workspace import DataSource, Notes, write_notes

PACE = {
    "cat/model.onnx": 8.0,
    "cat/model.int8.onnx": 5.0,
    "cat-pruned/model.onnx": 4.0,
    "cat-pruned/model.int8.onnx": 2.0,
}
DATASET = make_dataset(40)


def fake(paths: Sequence[Path], config: LatencyConfig, engines: object) -> dict[Path, list[list[float]]]:
    """Instead of processes: milliseconds that depend on the file alone, halved by a second thread."""
    found = {path: PACE.get(report.name_of(path), 1.0) / config.threads for path in paths}
    return {path: [[ms, ms, 3 * ms]] * config.rounds for path, ms in found.items()}


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(report, "latencies", fake)
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return family(tmp_path / "output")


def measure(artefact: Path, against: Path | None = None, pictures: ImageSet | None = None) -> Report:
    config = LatencyConfig(threads=2, rounds=2)
    pictures = pictures or labelled(DATASET, "validation")
    return measure_report(artefact, pictures, against=against, latency=config, command="pocketzoo report x")


def test_every_file_with_its_parent_and_its_origin(files: dict[str, Path]) -> None:
    done = measure(files["pruned"].parent)
    assert [line.path for line in done.lines] == [files["parent"], files["pruned"], files["both"]]
    assert [(c.path, c.reference, c.relation) for c in done.comparisons] == [
        (files["pruned"], files["parent"], "parent"),
        (files["both"], files["pruned"], "parent"),
        (files["both"], files["parent"], "origin"),
    ]
    two, four = (Ratio(value=value, low=value, high=value) for value in (2.0, 4.0))
    assert [c.speed for c in done.comparisons] == [{1: two, 2: two}, {1: two, 2: two}, {1: four, 2: four}]
    timing = done.lines[0].timings
    assert (timing[1].p50_ms, timing[1].p95_ms, timing[2].p50_ms, timing[1].n) == (8.0, 24.0, 4.0, 6)


def test_numbers_are_those_of_their_functions(files: dict[str, Path]) -> None:
    done = measure(files["pruned"].parent)
    samples = DATASET.splits["validation"]
    labels = truth(DATASET, "validation", DATASET.labels, where="")
    logits = {}
    for name in ("parent", "pruned", "both"):
        predictor = Predictor(files[name])
        logits[name] = logits_of(predictor.logits, samples, predictor.card.use.input)
    right = {name: int((answers.argmax(1) == labels).sum()) for name, answers in logits.items()}
    assert [line.metrics.top1 * 40 for line in done.lines if line.metrics] == pytest.approx(list(right.values()))
    assert len(set(right.values())) > 1, "files that answer alike would hide a mix-up"
    last = done.lines[2]
    assert last.calibration_error == pytest.approx(calibration_error(softmax(logits["both"]), labels))
    assert last.digest == Predictor(files["both"]).digest
    origin = done.comparisons[2]
    assert origin.paired == compare_answers(logits["parent"], logits["both"], labels)
    assert origin.paired is not None
    assert origin.paired.points == pytest.approx(100 * (right["both"] - right["parent"]) / 40)
    assert origin.agreement == np.mean(logits["parent"].argmax(1) == logits["both"].argmax(1))
    assert origin.worst == worst_losses(logits["parent"], logits["both"], labels, DATASET.labels)


def test_against_takes_the_place_of_the_parent(files: dict[str, Path], tmp_path: Path) -> None:
    other = write_artefact(tmp_path / "other" / "model.onnx", seed=7)
    done = measure(files["pruned"].parent, against=tmp_path / "other")
    assert other.use.labels == DATASET.labels
    assert [(report.name_of(c.path), report.name_of(c.reference)) for c in done.comparisons] == [
        ("cat-pruned/model.onnx", "other/model.onnx"),
        ("cat-pruned/model.int8.onnx", "cat-pruned/model.onnx"),
        ("cat-pruned/model.int8.onnx", "other/model.onnx"),
    ]


def test_a_parent_that_is_gone_is_said_so(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (files["parent"].parent / "model.safetensors").unlink()
    done = measure(files["pruned"])
    assert ([line.path for line in done.lines], done.comparisons) == ([files["pruned"]], ())
    assert "cat-pruned/model.onnx: what it was made from is not in" in (said := capsys.readouterr().err)
    assert "name it with --against" in said


def test_a_first_network_has_no_parent_and_nothing_is_said(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    done = measure(files["parent"])
    assert (len(done.lines), done.comparisons, capsys.readouterr().err) == (1, (), "")
    assert len(tables(done)) == 1


def test_pictures_without_labels_give_agreement_alone(files: dict[str, Path], tmp_path: Path) -> None:
    for index in range(9):
        path = tmp_path / "pictures" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(picture(index)))
    pictures = ImageSet(name="pictures", samples=open_images(tmp_path / "pictures"))
    done = measure(files["pruned"], pictures=pictures)
    assert done.lines[0].metrics is None
    assert (done.comparisons[0].n, done.comparisons[0].paired, done.comparisons[0].worst) == (9, None, ())
    assert 0 <= done.comparisons[0].agreement <= 1
    values = document(done)
    assert (values["n"], values["split"], values["files"][0]["metrics"]) == (9, None, None)
    assert "n = 9 images of pictures, without labels" in markdown(done.artefact, sections(done))


def test_a_file_that_was_not_worth_writing_is_told_of(files: dict[str, Path], tmp_path: Path) -> None:
    files["both"].unlink()
    told: dict[str, Any] = {
        "verdict": "slower",
        "written": False,
        "precision": "INT8",
        "parent": sha256_file(files["pruned"]),
    }
    told |= {"reason": "slower than its parent", "measured": {"speedup": 0.8, "agreement": 1.0, "drop": 0.0}}
    told["measured"] |= {"drop_of": "top-1", "compared_images": 40, "compared_on": "images of tiny"}
    write_report(files["both"], told)
    done = measure(files["pruned"].parent)
    assert [line.path for line in done.lines] == [files["parent"], files["pruned"]]
    (remark,) = done.remarks
    assert remark.startswith("cat-pruned/model.int8.onnx: not written: INT8 0.80x the speed of FP32")
    assert remark in markdown(done.artefact, sections(done))
    assert document(done)["remarks"] == [remark]
    exported(files["pruned"].with_name("model.safetensors"), seed=8)  # the remark is about the graph before
    assert measure(files["pruned"].parent).remarks == ()


def test_what_cannot_be_compared(files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no ONNX file at"):
        artefact_files(tmp_path / "nothing")
    with pytest.raises(DataError, match="validation split has no images"):
        ImageSet(name="birds", split="validation", samples=[])
    card = make_card(("a", "b", "c"), stages=("train", "export"))
    write_artefact(tmp_path / "letters" / "model.onnx", replace(card, name="letters"))
    with pytest.raises(DataError, match="only files with the same labels can be compared"):
        measure(files["parent"], against=tmp_path / "letters")


def test_the_page_carries_count_command_and_environment(files: dict[str, Path]) -> None:
    done = measure(files["pruned"].parent)
    page = markdown(done.artefact, sections(done))
    for fact in ("n = 40 images of tiny, split validation", "`pocketzoo report x`", "onnxruntime 1.", "2 processes"):
        assert fact in page
    rows = [line for line in page.splitlines() if line.startswith("| cat")]
    # Files, comparisons, labels that lost recall; `cat` is a label, too, of the tables by label.
    rows = [row for row in rows if row.startswith("| cat/") or row.startswith("| cat-pruned/")]
    assert len(rows) == 3 + 3 + sum(len(c.worst) for c in done.comparisons)
    metrics = done.lines[1].metrics
    assert metrics
    assert f"| cat-pruned/model.onnx | {100 * metrics.top1:.2f} (" in rows[1]
    assert "| 2.0 | " in rows[1]
    assert "| 4.000 / 12.000 | 2.000 / 6.000 |" in rows[1]
    assert all(row.count(" | ") == rows[0].count(" | ") for row in rows[:3])
    values = json.loads(json.dumps(document(done)))
    assert values["files"][1]["latency"][0] == {
        "threads": 1,
        "n": 6,
        "p50_ms": 4.0,
        "low_ms": 4.0,
        "high_ms": 4.0,
        "p95_ms": 12.0,
        "p99_ms": 12.0,
        "round_ms": [4.0, 4.0],
    }
    assert values["comparisons"][2]["relation"] == "origin"


def test_the_file_that_answers_is_judged_unless_one_is_named(files: dict[str, Path]) -> None:
    assert measure(files["pruned"].parent).subject.path == files["both"]
    assert measure(files["pruned"]).subject.path == files["pruned"]


def test_a_busy_machine_is_told_of(files: dict[str, Path]) -> None:
    done = replace(measure(files["parent"]), load=0.0)
    assert "p95 is more than 2 times p50 of cat/model.onnx at 1 thread" in busy_note(done)
    assert busy_note(done) in markdown(done.artefact, sections(done))
    even = {threads: replace(timing, p95_ms=timing.p50_ms) for threads, timing in done.lines[0].timings.items()}
    done = replace(done, lines=(replace(done.lines[0], timings=even),))
    assert busy_note(done) == ""
    assert "1000.0 tasks wanted its" in busy_note(replace(done, load=1000.0))


@pytest.fixture
def described(files: dict[str, Path]) -> Path:
    """The pruned artefact, with a note where its data is: scikit-learn's digits have other labels."""
    source = DataSource(name="digits", per_split=20)
    write_notes(files["pruned"].parent, Notes(role="model", data=source, test=source))
    return files["pruned"].parent


def test_the_command_writes_both_files(files: dict[str, Path], tmp_path: Path) -> None:
    for number, label in enumerate(("cat", "dog", "hen")):
        for index in range(10):
            path = tmp_path / "birds" / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(100 * number + index)))
    folder = files["pruned"].parent
    done = run_cli("report", folder, "--data", tmp_path / "birds", "--rounds", "1", "--threads", "2")
    assert "cat-pruned/model.int8.onnx" in done.output
    values = json.loads((folder / "report.json").read_text())
    assert values["split"] == "validation"
    assert [entry["file"] for entry in values["files"]] == ["model.onnx", "model.onnx", "model.int8.onnx"]
    assert values["command"].startswith(f"pocketzoo report {folder} --split validation --data")
    assert f"`{values['command']}`" in (folder / "report.md").read_text()
    assert values["command"] in html.unescape((folder / "report.html").read_text())
    options = ("--data", tmp_path / "birds", "--split", "test", "--json")
    assert json.loads(run_cli("report", folder, *options).output)["split"] == "test"
    found = json.loads(run_cli("report", folder, "--images", tmp_path / "birds", "--json").output)
    assert (found["n"], found["dataset"]) == (30, str(tmp_path / "birds"))


def test_wrong_usage(described: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown split 'tset'; did you mean test"):
        run_cli("report", described, "--split", "tset")
    with pytest.raises(UsageError, match="--images are images without labels"):
        run_cli("report", described, "--images", tmp_path, "--data", "digits")
    with pytest.raises(DataError, match="does not know the label"):
        run_cli("report", described)
    lonely = exported(write_checkpoint(tmp_path / "output" / "dog", (TRAIN,)))
    with pytest.raises(ArtefactError, match=r"add --data.*or --images FOLDER"):
        run_cli("report", lonely.parent)
