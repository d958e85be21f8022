"""`pocketzoo import`, and everything after it without a data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file

from tests.conftest import run_cli
from tests.zoo.factories import TINY_VIT, encode, picture
from zoo.artefact import onnx_file as graph
from zoo.base.errors import ArtefactError, DataError, UsageError
from zoo.base.files import CHECKPOINT, GRAPH
from zoo.networks.checkpoint import read_card
from zoo.networks.registry import build

ARCHITECTURE = "vit_tiny_patch16_224"
SETTINGS = [part for key, value in TINY_VIT.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny ViT with three outputs, and their labels."""
    folder = tmp_path_factory.mktemp("sources")
    torch.manual_seed(1)
    save_file(
        build(ARCHITECTURE, classes=3, channels=3, arguments=TINY_VIT).state_dict(), folder / "weights.safetensors"
    )
    (folder / "pets.txt").write_text("cat\ndog\nhen\n")
    return folder


@pytest.fixture(scope="module")
def imported(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of artefacts with an imported and exported one; not to be changed."""
    folder = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_OUTPUT", str(folder))
        assert _import(sources).exit_code == 0
    return folder


@pytest.fixture
def artefact(imported: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(imported))
    yield imported / f"{ARCHITECTURE}-pets"


def _import(sources: Path, *more: str | Path) -> Result:
    weights, labels = sources / "weights.safetensors", sources / "pets.txt"
    return run_cli("import", ARCHITECTURE, "--weights", weights, "--labels", labels, *SETTINGS, *more)


def test_it_makes_a_checkpoint_and_a_graph(artefact):
    assert sorted(path.name for path in artefact.iterdir()) == [GRAPH, CHECKPOINT]
    card = graph.read_card(artefact / GRAPH)
    assert [entry.stage for entry in card.lineage] == ["import", "export"]
    assert card.use.golden is not None
    assert (card.use.reference, card.inform.metrics, card.use.temperature) == (None, (), 1.0)
    assert card.use.labels == ("cat", "dog", "hen")


def test_the_same_command_again_changes_nothing(artefact, sources):
    before = {path.name: path.stat().st_mtime_ns for path in artefact.iterdir()}
    text = _import(sources).output
    assert f"{CHECKPOINT}: {ARCHITECTURE} of file:weights.safetensors, 3 labels, 32 x 32 pixels" in text
    assert run_cli("export", artefact).output.split(": ")[1].startswith("not measured")
    assert {path.name: path.stat().st_mtime_ns for path in artefact.iterdir()} == before


def test_only_a_checkpoint_and_as_json(sources, tmp_path):
    found = json.loads(_import(sources, "--out", tmp_path / "mine", "--no-export", "--json").output)
    assert (found["path"], found["onnx"]) == (str(tmp_path / "mine" / CHECKPOINT), None)
    assert found["card"]["name"] == read_card(tmp_path / "mine" / CHECKPOINT).name == "mine"
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [CHECKPOINT]


def test_another_artefact_is_not_overwritten(artefact, sources):
    with pytest.raises(UsageError, match="has another artefact already"):
        run_cli("import", "tf_efficientnet_lite0", "--out", artefact)


def test_it_answers(artefact, tmp_path):
    (tmp_path / "1.png").write_bytes(encode(picture(1, 40, 50)))
    answer = json.loads(run_cli("predict", artefact, tmp_path / "1.png", "--json").output)
    assert {entry["label"] for entry in answer["labels"]} == {"cat", "dog", "hen"}


def test_accuracy_is_measured_where_data_is_named(artefact, tmp_path):
    # The labels of the data may be some of the network's.
    for number, label in enumerate(("hen", "cat")):
        for index in range(10):
            path = tmp_path / "farm" / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(picture(100 * number + index)))
    row = json.loads(run_cli("evaluate", artefact, "--data", tmp_path / "farm", "--split", "train", "--json").output)
    assert (row["n"], row["dataset"]) == (14, "farm")
    with pytest.raises(ArtefactError, match="add --data"):
        run_cli("evaluate", artefact)
    (tmp_path / "farm").rename(tmp_path / "barn")
    (tmp_path / "barn" / "cat").rename(tmp_path / "barn" / "cow")
    with pytest.raises(DataError, match="does not know the label 'cow' of barn"):
        run_cli("evaluate", artefact, "--data", tmp_path / "barn")


def test_tables_pass_over_it(artefact):
    result = run_cli("bench", "accuracy")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "imported, no data set belongs to it; `pocketzoo evaluate" in result.stderr
    with pytest.raises(ArtefactError, match="imported, no data set belongs to it"):
        run_cli("bench", "accuracy", artefact)
    line = next(line for line in run_cli("list").output.splitlines() if line.startswith(artefact.name))
    assert line.split()[1:4] == ["-", "-", "-"] and "imported" in line


def test_it_is_pruned_without_data(artefact, tmp_path):
    target = tmp_path / "pruned"
    assert run_cli("prune", artefact, "--out", target, "--macs", "0.8", "--round-to", "1").exit_code == 0
    card = read_card(target / CHECKPOINT)
    assert [entry.stage for entry in card.lineage] == ["import", "prune"]
    assert (card.inform.metrics, [path.name for path in target.iterdir()]) == ((), [CHECKPOINT])


def test_what_needs_data_asks_for_it(artefact, tmp_path):
    teacher = shutil.copy(artefact / CHECKPOINT, tmp_path / "teacher.safetensors")
    with pytest.raises(DataError, match="has no data to calibrate on: name a folder of images with --calibrate"):
        run_cli("quantize", artefact)
    with pytest.raises(ArtefactError, match="add --data"):
        run_cli("recover", artefact, "--teacher", teacher)
