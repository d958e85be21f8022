"""The console script: exit codes, messages and output, on what the recipe `tiny` made."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from tests.conftest import run_cli
from zoo.base.errors import ArtefactError, ImageError
from zoo.data.catalogue import open_dataset
from zoo.main import app, main


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["pocketzoo", *(str(argument) for argument in arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


def commands() -> list[list[str]]:
    top = get_command(app).commands
    groups = {"adapter", "bench", "explain"}
    return [[name] for name in top if name not in groups] + [
        [g, name] for g in sorted(groups) for name in top[g].commands
    ]


def test_every_command_has_help_with_its_purpose() -> None:
    assert len(commands()) == 55
    for command in commands():
        text = run_cli(*command, "--help").output
        assert "Usage:" in text
        assert len(text.splitlines()) > 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("train", "--recipe", "quikstart"),
            2,
            "unknown recipe (or TOML file that does not exist) 'quikstart'; did you mean quickstart?",
        ),
        (("train", "--recipe", "tiny", "--set", "train.epoch=3"), 2, "unknown key 'epoch'; did you mean epochs?"),
        (
            ("train", "--recipe", "tiny", "--set", "train.epochs=many"),
            2,
            "run[0].train.epochs: expected int, got 'many'",
        ),
        (("train", "--recipe", "tiny", "--only", "resnet"), 2, "unknown run 'resnet'; did you mean tiny-resnet?"),
        (("train", "--recipe", "auto"), 2, "has no data set of its own; add --data FOLDER"),
        (("train", "--data", "digits", "--weights", "own.pt"), 2, "does not say which network it is of; add --model"),
        (("train", "--model", "lenet"), 2, "has no data set of its own; add --data FOLDER"),
        (("train", "--recipe", "auto", "--data", "/nowhere", "--model", "lenet"), 2, "'/nowhere'"),
        (("export",), 2, "name at least one artefact"),
        (("compress", "--data", "digits", "--model", "lenet"), 1, "no checkpoint at"),
        (("export", "nothing"), 1, "no checkpoint at nothing"),
        (("quantize", "nothing"), 1, "no ONNX file at nothing/model.onnx; run `pocketzoo export nothing` first"),
        (("predict", "nothing", "a.png"), 1, "no ONNX file at nothing"),
        (("list",), 1, "run `make train compress export`"),
    ],
)
def test_mistakes_get_a_sentence(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert exit_code(monkeypatch, *arguments) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error: ")
    assert "Traceback" not in shown


def test_an_unknown_option_is_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code(monkeypatch, "train", "--no-such-option") == 2


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def without_torch() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("zoo.main.app", without_torch)
    assert exit_code(monkeypatch) == 1
    assert "pip install 'pocketzoo[train]'" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Ignored where the tests run in a shell's background.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("zoo.training.recipe.load_recipe", lambda *_, **__: signal.raise_signal(number))
    try:
        assert exit_code(monkeypatch, "train") == 1
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ignored)
    assert "the same command continues where it stopped" in capsys.readouterr().err


def test_predict_answers_images(made: Path, tmp_path: Path) -> None:
    sample = open_dataset("mnist5k", per_split=200).splits["test"][0]
    image = tmp_path / "digit.png"
    image.write_bytes(sample.read())
    text = run_cli("predict", made / "tiny-resnet", image).output
    assert text.startswith(f"{image}: ")
    answer = json.loads(run_cli("predict", made / "tiny-resnet", image, "--json", "--top", "10").output)
    assert sum(entry["probability"] for entry in answer["labels"]) == pytest.approx(1, abs=1e-5)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match=r"text.png: cannot decode the image"):
        run_cli("predict", made / "tiny-resnet", tmp_path / "text.png")
    with pytest.raises(ArtefactError, match="cannot be read"):
        run_cli("predict", made / "tiny-resnet", tmp_path / "absent.png")


def test_show_prints_the_card_of_both_kinds(made: Path) -> None:
    for artefact, stage in ((made / "tiny-resnet", "train"), (made / "tiny-resnet" / "model.int8.onnx", "quantize")):
        card = json.loads(run_cli("show", artefact).output)
        assert card["schema"] == "zoo.card/1"
        assert card["lineage"][-1]["stage"] == stage


def test_list_and_evaluate(made: Path) -> None:
    assert "tiny-resnet-pruned-int8" in run_cli("list").output
    rows = [json.loads(line) for line in run_cli("list", "--json").output.splitlines()]
    assert len(rows) == 14
    assert "validation top-1" in run_cli("evaluate", made / "tiny-resnet").output


def test_plan_prints_and_writes_nothing(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    text = run_cli("prune", made / "tiny-resnet", "--out", out, "--macs", "0.5", "--plan").output
    assert "layer4.0.conv1" in text
    assert "million multiply-accumulates" in text
    assert not out.exists()


def test_single_stages_one_after_the_other(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "vit-small"
    run_cli("prune", made / "tiny-vit-full", "--out", out, "--macs", "0.7")
    run_cli("recover", out, "--teacher", made / "tiny-vit-full", "--epochs", "1")
    run_cli("export", out)
    run_cli("quantize", out, "--images", "8", "--keep", "any", "--max-drop", "100")
    card = json.loads(run_cli("show", out / "model.int8.onnx").output)
    assert [entry["stage"] for entry in card["lineage"]][-4:] == ["prune", "recover", "export", "quantize"]
