"""`pocketzoo run`: from a folder of images to measured files."""

from __future__ import annotations

import json
import shlex
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.commands.run import _take, step_minutes
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
    assert "Minutes, as the recipe says: 14 for" in told[0]
    assert [line[:5] for line in told if " so far" in line] == [f"[{step}/5]" for step in range(1, 6)]
    assert next(line for line in told if line.startswith("[1/5]")).endswith("00:00 so far")
    assert len(next(line for line in told if line.startswith("minutes of the steps: ")).split(",")) == 5
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


@pytest.mark.parametrize(
    ("as_announced", "lines"),
    [
        (True, ["00:00 so far, about 08:00 left", "06:00 so far, about 10:00 left", "15:00 so far, about 01:00 left"]),
        (False, ["00:00 so far", "06:00 so far, about 10:00 left", "15:00 so far, about 01:00 left"]),
    ],
)
def test_what_is_left_follows_the_pace_of_what_has_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_announced: bool, lines: list[str]
) -> None:
    clock = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr("zoo.base.progress.time.monotonic", lambda: clock.now)

    def taking(minutes: float) -> Callable[[], None]:
        def act() -> None:
            clock.now += 60 * minutes

        return act

    # Announced were 3, 4.5, 100 (left out) and 0.5 minutes; the first takes twice as long, and so do all others.
    steps = {"a": taking(6), "b": taking(9), "c": taking(100), "d": taking(1)}
    shares = [3.0, 4.5, 100.0, 0.5]
    _take(steps, shares, as_announced=as_announced, skipped=(2,))
    told = capsys.readouterr().err.splitlines()
    assert [line.split("; ")[1] for line in told[:-1]] == lines
    assert told[-1] == "minutes of the steps: 6.0, 9.0, 0.0, 1.0"


def test_recipes_say_how_long_the_steps_take(tmp_path: Path) -> None:
    assert [len(step_minutes(name)) for name in ("quickstart", "auto", "tiny")] == [5, 5, 0]
    (tmp_path / "mine.toml").write_text("# Steps: 1 train, 2.5 prune and recover, 3 export: minutes on 2 cores.\n")
    assert step_minutes(str(tmp_path / "mine.toml")) == [1.0, 2.5, 3.0]


def test_it_stands_with_the_commands_that_train() -> None:
    commands = {command.name or command.callback.__name__: command for command in app.registered_commands}
    assert commands["run"].rich_help_panel == commands["train"].rich_help_panel
