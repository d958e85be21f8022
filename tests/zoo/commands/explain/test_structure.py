"""`pocketzoo explain summary` and `graph`, as they are typed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from compress.export import export
from tests.conftest import run_cli
from tests.zoo.factories import make_card, make_input
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import sha256_file
from zoo.networks import checkpoint
from zoo.networks.registry import build, count_macs


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and its ONNX file."""
    folder = tmp_path_factory.mktemp("lenet")
    model, spec = build("lenet", classes=3, channels=3), make_input(28)
    card = make_card(spec=spec, stages=("train",))
    trained = dataclasses.replace(
        card.lineage[0], summary={"trainable": sum(p.numel() for p in model.parameters()), "best_epoch": 1}
    )
    card = dataclasses.replace(
        card, lineage=(trained,), inform=dataclasses.replace(card.inform, macs=count_macs(model, spec))
    )
    checkpoint.save(model.eval(), card, folder / "model.safetensors")
    export(folder / "model.safetensors", folder / "model.onnx")
    return folder


def test_layers(lenet: Path) -> None:
    macs = checkpoint.read_card(lenet / "model.safetensors").inform.macs
    done = run_cli("explain", "summary", lenet)
    assert done.exit_code == 0
    assert "Conv2d" in done.stdout
    assert "trained %" in done.stdout
    assert f"{macs:,} multiply-accumulates per image" in done.stdout
    assert "(100.0 % of" in done.stdout
    found = json.loads(run_cli("explain", "summary", lenet / "model.safetensors", "--json").stdout)
    assert found["totals"]["macs"] == sum(layer["macs"] for layer in found["layers"]) == macs
    assert found["totals"]["fp32_bytes"] == 4 * found["totals"]["parameters"]
    assert found["input"] == [1, 3, 28, 28]
    assert found["trained"]["share"] == 1.0
    assert all(layer["trained"] == layer["parameters"] for layer in found["layers"])


def test_an_architecture_without_an_artefact() -> None:
    options = ("--model", "resnet10t", "--classes", 10, "--size", 64)
    found = json.loads(run_cli("explain", "summary", *options, "--depth", 1, "--json").stdout)
    described = json.loads(run_cli("model", "resnet10t", "--classes", 10, "--size", 64, "--json").stdout)
    assert found["totals"]["macs"] == described["macs"]
    assert found["totals"]["parameters"] == described["parameters"]
    assert found["trained"] is None
    assert [layer["name"] for layer in found["layers"]][-1] == "fc"
    assert "trained" not in run_cli("explain", "summary", *options).stdout


def test_an_onnx_file(lenet: Path) -> None:
    done = run_cli("explain", "summary", lenet / "model.onnx")
    assert "Conv" in done.stdout
    assert "float32 [batch, 3, 28, 28]" in done.stdout
    found = json.loads(run_cli("explain", "summary", lenet / "model.onnx", "--json").stdout)
    assert found["macs"] == checkpoint.read_card(lenet / "model.safetensors").inform.macs
    assert found["nodes"]["Conv"] == 2


def test_what_summary_refuses(lenet: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected an artefact"):
        run_cli("explain", "summary")
    with pytest.raises(UsageError, match="expected an artefact"):
        run_cli("explain", "summary", lenet, "--model", "lenet")
    with pytest.raises(UsageError, match=r"did you mean .*resnet18"):
        run_cli("explain", "summary", "--model", "resnet81")
    with pytest.raises(UsageError, match=r"--depth: .* ONNX file"):
        run_cli("explain", "summary", lenet / "model.onnx", "--depth", 2)
    with pytest.raises(ArtefactError, match="no checkpoint at"):
        run_cli("explain", "summary", tmp_path)


def test_graph_files(lenet: Path, tmp_path: Path) -> None:
    before = sha256_file(lenet / "model.onnx")
    for named in (lenet, lenet / "model.onnx", lenet / "model.safetensors"):
        said = run_cli("explain", "graph", named).stdout
        assert str(lenet / "model.onnx") in said
        assert "--out FILE.onnx fills them in" in said
    copy = tmp_path / "shapes.onnx"
    said = run_cli("explain", "graph", lenet, "--out", copy).stdout
    assert str(copy) in said
    assert "fills them in" not in run_cli("explain", "graph", copy).stdout
    assert sha256_file(lenet / "model.onnx") == before
    said = run_cli("explain", "graph", lenet, "--format", "torchscript").stdout
    assert str(lenet / "explain" / "graph.pt") in said
    assert "largest difference" in said
    assert (lenet / "explain" / "graph.pt").is_file()


def test_what_graph_refuses(lenet: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown format 'onxx'; did you mean onnx"):
        run_cli("explain", "graph", lenet, "--format", "onxx")
    with pytest.raises(UsageError, match=r"expected a name ending in \.pt"):
        run_cli("explain", "graph", lenet, "--format", "torchscript", "--out", tmp_path / "x.onnx")
    with pytest.raises(ArtefactError, match="`pocketzoo export"):
        run_cli("explain", "graph", tmp_path)
