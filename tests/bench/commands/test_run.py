"""`pocketzoo run`: from a folder of images to measured files."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.conftest import run_cli, twice_as_fast
from tests.zoo.data.folders.test_folder import _fill
from zoo.artefact.onnx_file import read_card
from zoo.main import app

OPTIONS = ("--model", "lenet", "--weights", "none", "--epochs", "1", "--set", "recover.fit.epochs=1")
KEEP = ("--set", "quantize.images=4", "--set", "quantize.keep=any", "--set", "quantize.max_drop=100")


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "my models"))
    monkeypatch.setattr("compress.quantize.trials.measure_speed", twice_as_fast)
    return tmp_path / "my models"


def test_everything_from_a_folder(output: Path, tmp_path: Path) -> None:
    photos = _fill(tmp_path / "photos", {"cat": 8, "dog": 8})
    done = run_cli("run", "--data", photos, *OPTIONS, *KEEP)
    assert done.exit_code == 0
    artefact = output / "photos-lenet"
    files = [folder / file for folder in (artefact, output / "photos-lenet-pruned") for file in FILES]
    assert all(path.is_file() for path in files)
    assert [entry.stage for entry in read_card(files[-1]).lineage][-2:] == ["export", "quantize"]
    rows = [json.loads(line) for line in (output / "bench" / "accuracy.jsonl").read_text().splitlines()]
    assert {(row["artefact"], row["file"], row["split"]) for row in rows} == {
        (path.parent.name, path.name, "test") for path in files
    }
    told = done.stderr.splitlines()
    assert "Minutes, as the recipe says: 4 to 9" in told[0]
    assert [line[:5] for line in told if line.endswith(" so far")] == [f"[{step}/5]" for step in range(1, 6)]
    table = done.stdout.splitlines()
    assert sum("photos-lenet" in line and "1.00x" in line for line in table) == 2
    steps = done.stderr[done.stderr.index("next:") :].splitlines()[1:]
    words = [shlex.split(step, comments=True) for step in steps]
    assert [word[:2] for word in words[1:]] == [["pocketzoo", "report"], ["pocketzoo", "score"]]
    assert words[0][:3] == [f"POCKETZOO_OUTPUT={output}", "bentoml", "serve"]
    assert Path(words[1][2]).is_dir() and Path(words[2][2]).is_file()
    before = {path: path.read_bytes() for path in files}
    again = run_cli("run", "--data", photos, *OPTIONS, *KEEP)
    assert {path: path.read_bytes() for path in files} == before, "what is up to date is not made again"
    assert len((output / "bench" / "accuracy.jsonl").read_text().splitlines()) == len(rows)
    assert "next:" in again.stderr


FILES = ("model.onnx", "model.int8.onnx")


def test_what_cannot_be_pruned_is_measured_unpruned(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.commands.run.why_not_prunable", lambda run: "it is all in one piece")
    photos = _fill(tmp_path / "photos", {"cat": 8, "dog": 8})
    assert run_cli("run", "--data", photos, *OPTIONS, *KEEP).exit_code == 0
    assert sorted(path.name for path in output.glob("photos-*")) == ["photos-lenet"]


def test_it_stands_with_the_commands_that_train() -> None:
    commands = {command.name or command.callback.__name__: command for command in app.registered_commands}
    assert commands["run"].rich_help_panel == commands["train"].rich_help_panel
