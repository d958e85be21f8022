"""Tests of `pocketzoo optimize`, on a real network that is small, over real digits."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from compress.search import trials, workbench
from tests.conftest import run_cli
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import LineageEntry
from zoo.artefact.latency import LatencyConfig
from zoo.base.commandline import app
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, sha256_file
from zoo.networks import checkpoint
from zoo.training.loop.config import FitConfig
from zoo.training.recipe import Run
from zoo.training.stage import train

SMALL = {"filters": 16, "growth": "equal", "dense": 16, "img_size": 32}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of artefacts with one in it; not to be changed."""
    output = tmp_path_factory.mktemp("output")
    run = Run(
        name="net",
        model="cnn5",
        arguments=SMALL,
        data="mnist5k",
        size=32,
        images_per_split=60,
        train=FitConfig(epochs=2, batch_size=20, lr=3e-3),
    )
    train(run, output)
    return output


@pytest.fixture
def output(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where times are those of the files' sizes."""
    shutil.copytree(trained, tmp_path / "output")
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(tmp_path / "output"))

    def timed(
        paths: Sequence[Path], config: LatencyConfig, *, engines: Mapping[Path, str]
    ) -> dict[Path, list[list[float]]]:
        return {path: [[path.stat().st_size / 1e5]] * config.rounds for path in paths}

    monkeypatch.setattr(workbench, "latencies", timed)
    monkeypatch.setenv("POCKETZOO_ENGINE", "onnxruntime")
    return tmp_path / "output"


def test_a_search_is_interrupted_resumed_and_written(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "_FIRST", ((0.5, 1.0),))
    monkeypatch.setattr(trials, "_DRAWS", 0)
    command = ("optimize", output / "net", "--max-drop", "100", "--minutes", "20", "--importances", "l2")
    folder = output / "net-optimized"
    export = workbench.export

    def killed(source: Path, target: Path, **options: Any) -> Any:
        if target.parent.name.startswith("unpruned"):
            return export(source, target, **options)
        monkeypatch.setattr(workbench, "export", export)
        raise KeyboardInterrupt

    monkeypatch.setattr(workbench, "export", killed)
    stopped = run_cli(*command)
    assert stopped.exit_code != 0
    assert "best so far: unpruned-32x32 int8" in stopped.stderr
    assert not list(folder.glob("model.*"))
    found = json.loads(run_cli(*command, "--json").stdout)
    names = ["unpruned-32x32 float32", "unpruned-32x32 int8", "l2-0.50-32x32-e2 int8"]
    assert [entry["name"] for entry in found["candidates"]] == names
    chosen = found["chosen"]
    assert chosen["name"] == names[-1]
    assert found["path"] == str(folder / INT8_GRAPH)
    assert chosen["files"][INT8_GRAPH] == sha256_file(folder / INT8_GRAPH)
    assert chosen["share"] == min(entry["share"] for entry in found["candidates"])
    assert found["test"]["chosen"]["n"] == 60
    stages = [entry.stage for entry in graph.read_card(folder / INT8_GRAPH).lineage]
    assert stages == ["train", "prune", "recalibrate", "recover", "export", "quantize"]
    assert graph.read_card(folder / GRAPH).lineage[-1].parent == sha256_file(folder / CHECKPOINT)
    cards = [checkpoint.read_card(folder / CHECKPOINT), graph.read_card(folder / INT8_GRAPH)]
    assert [card.name for card in cards] == ["net-optimized", "net-optimized-int8"]
    assert (folder / "run.json").is_file()
    assert (folder / "pareto.png").is_file()
    table = run_cli(*command).stdout
    for words in ("validation: 60 images", "onnxruntime", "l2 0.50, 2 epochs", "> chosen", "of the answers agree"):
        assert words in table
    # Another goal, which nothing meets: what is there stays, and is told.
    failed = CliRunner().invoke(app, [str(word) for word in (*command, "--mb", "0.001")])
    assert isinstance(failed.exception, ArtefactError)
    assert "nothing found meets the goal; the nearest would with --mb 0.0" in str(failed.exception)
    kept = f"the files of an earlier search stay in {folder}: {CHECKPOINT}, {GRAPH}, {INT8_GRAPH}"
    assert kept in failed.stdout


def test_mistakes(output: Path) -> None:
    with pytest.raises(ArtefactError, match="is an ONNX file"):
        run_cli("optimize", output / "net" / GRAPH)
    with pytest.raises(UsageError, match="--max-drop"):
        run_cli("optimize", output / "net", "--max-drop", "-1")
    with pytest.raises(UsageError, match="unknown importance"):
        run_cli("optimize", output / "net", "--importances", "l2,fpgn")
    (output / "net" / "run.json").unlink()
    with pytest.raises(ArtefactError, match="add --data"):
        run_cli("optimize", output / "net")
    card = checkpoint.read_card(output / "net" / CHECKPOINT)
    model, _ = checkpoint.load(output / "net" / CHECKPOINT)
    imported = dataclasses.replace(card, lineage=(LineageEntry(stage="import", config={}, parent=None),))
    checkpoint.save(model, imported, output / "imported" / CHECKPOINT)
    with pytest.raises(ArtefactError, match="quantize ARTEFACT --calibrate FOLDER"):
        run_cli("optimize", output / "imported")
