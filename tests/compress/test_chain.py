"""Tests of compress.chain, on what the recipe `tiny` made."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from compress import chain as chain_module
from compress.chain import compress_run, export_artefact, quantize_artefact
from compress.quantize.report import REPORT, write_report
from compress.quantize.stage import Quantized
from compress.quantize.trials import Speed
from tests.conftest import run_cli
from tests.zoo.factories import make_samples
from zoo.artefact import onnx_file as graph
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, GRAPH, HALF_GRAPH, INT8_GRAPH, sha256_file
from zoo.networks import checkpoint
from zoo.training.loop.config import FitConfig
from zoo.training.recipe import PruneConfig, QuantizeConfig, RecalibrateConfig, RecoverConfig, Run
from zoo.training.stage import train
from zoo.training.workspace import DataSource, read_notes

MODELS = ("tiny-resnet", "tiny-vit-full", "tiny-vit-lora")


def test_the_chain_makes_every_artefact(chain: Path) -> None:
    folders = {path.name for path in chain.iterdir() if (path / CHECKPOINT).is_file()}
    assert folders == {*MODELS, "tiny-vit-digits", *(f"{name}-pruned" for name in MODELS)}
    for folder in folders:
        for name in (GRAPH, INT8_GRAPH):
            assert (chain / folder / name).is_file(), (folder, name)


@pytest.mark.parametrize("name", MODELS)
def test_lineage_tells_the_whole_story(chain: Path, name: str) -> None:
    stages = [entry.stage for entry in graph.read_card(chain / f"{name}-pruned" / INT8_GRAPH).lineage]
    training = {
        "tiny-resnet": ["train"],
        "tiny-vit-full": ["train", "train"],
        "tiny-vit-lora": ["train", "train", "merge"],
    }
    normed = ["recalibrate"] if name == "tiny-resnet" else []
    assert stages == [*training[name], "prune", *normed, "recover", "export", "quantize"]


@pytest.mark.parametrize("name", MODELS)
def test_pruned_to_half_and_int8_smaller(chain: Path, name: str) -> None:
    parent = checkpoint.read_card(chain / name / CHECKPOINT).inform
    pruned = checkpoint.read_card(chain / f"{name}-pruned" / CHECKPOINT).inform
    assert 0.3 * parent.macs < pruned.macs <= 0.5 * parent.macs
    assert pruned.parameters < parent.parameters
    int8, fp32 = chain / name / INT8_GRAPH, chain / name / GRAPH
    assert int8.stat().st_size < 0.6 * fp32.stat().st_size


def test_no_intermediate_files_are_left(chain: Path) -> None:
    left = {path.name for path in chain.glob("*-pruned/*")}
    assert left == {CHECKPOINT, GRAPH, INT8_GRAPH, REPORT, "run.json", "log.csv"}


def test_a_second_time_nothing_is_done(made: Path) -> None:
    before = {path: (sha256_file(path), path.stat().st_mtime_ns) for path in made.glob("*/model.*")}
    for command in (("train",), ("compress",), ("export", "--int8")):
        run_cli(*command, "--recipe", "tiny")
    after = {path: (sha256_file(path), path.stat().st_mtime_ns) for path in made.glob("*/model.*")}
    assert before == after


def test_a_changed_setting_makes_only_that_stage_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    monkeypatch.setenv("POCKETZOO_OUTPUT", str(copy))
    only = ("--recipe", "tiny", "--only", "tiny-vit-full")
    digests = {name: sha256_file(copy / "tiny-vit-full" / name) for name in (CHECKPOINT, GRAPH, INT8_GRAPH)}
    run_cli("export", "--int8", *only, "--set", "quantize.images=16")
    assert sha256_file(copy / "tiny-vit-full" / GRAPH) == digests[GRAPH]
    assert graph.read_card(copy / "tiny-vit-full" / INT8_GRAPH).lineage[-1].config["images"] == 16
    run_cli("compress", *only, "--set", "prune.macs=0.7")
    assert checkpoint.read_card(copy / "tiny-vit-full-pruned" / CHECKPOINT).lineage[-2].config["macs"] == 0.7
    assert sha256_file(copy / "tiny-vit-full" / CHECKPOINT) == digests[CHECKPOINT]


def test_the_test_split_is_read_only_where_the_run_says_so(tmp_path: Path) -> None:
    fit = FitConfig(epochs=1, batch_size=20)
    run = Run(
        name="cnn",
        model="lenet",
        data="digits",
        images_per_split=20,
        test=False,
        train=fit,
        prune=PruneConfig(macs=0.8),
        recover=RecoverConfig(fit=fit),
    )
    train(run, tmp_path)
    path = compress_run(run, tmp_path)
    assert [metrics.split for metrics in checkpoint.read_card(path).inform.metrics] == ["validation"]
    before = sha256_file(path)
    assert compress_run(run, tmp_path) == path
    assert sha256_file(path) == before
    compress_run(dataclasses.replace(run, test=True), tmp_path)
    card = checkpoint.read_card(path)
    assert [metrics.split for metrics in card.inform.metrics] == ["validation", "test"]
    assert [entry.stage for entry in card.lineage] == ["train", "prune", "recover"]


def test_an_interrupted_recovery_goes_on_from_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = FitConfig(epochs=1, batch_size=20)
    run = Run(
        name="net",
        model="cnn5",
        arguments={"filters": 16, "growth": "equal", "dense": 16, "img_size": 32},
        data="digits",
        size=32,
        images_per_split=20,
        test=False,
        train=fit,
        prune=PruneConfig(macs=0.8, importance="l2"),
        recover=RecoverConfig(fit=fit),
    )
    train(run, tmp_path)
    done: list[str] = []

    def noted(name: str) -> None:
        stage = getattr(chain_module, name)

        def do(*arguments: Any, **options: Any) -> Any:
            done.append(name)
            return stage(*arguments, **options)

        monkeypatch.setattr(chain_module, name, do)

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    noted("prune")
    noted("recalibrate")
    with monkeypatch.context() as patch:
        patch.setattr(chain_module, "recover", killed)
        with pytest.raises(KeyboardInterrupt):
            compress_run(run, tmp_path)
        assert done == ["prune", "recalibrate"]
        # Other settings of the second stage alone make only that one again.
        with pytest.raises(KeyboardInterrupt):
            compress_run(dataclasses.replace(run, recalibrate=RecalibrateConfig(images=10)), tmp_path)
        assert done == ["prune", "recalibrate", "recalibrate"]
        with pytest.raises(KeyboardInterrupt):
            compress_run(run, tmp_path, force=True)
        assert done[3:] == ["prune", "recalibrate"]
    done.clear()
    path = compress_run(run, tmp_path)
    assert done == []
    assert [entry.stage for entry in checkpoint.read_card(path).lineage] == ["train", "prune", "recalibrate", "recover"]
    assert not list(path.parent.glob("*ed.safetensors"))


def test_data_named_again_keep_what_the_training_left_out(tmp_path: Path) -> None:
    fit = FitConfig(epochs=1, batch_size=20)
    run = Run(name="cnn", model="lenet", data="digits", images_per_split=20, labels=0.5, train=fit)
    folder = train(run, tmp_path).parent
    named = DataSource(name="digits")
    assert graph.read_card(export_artefact(folder, data=named)).metrics("validation").n == 20
    config = QuantizeConfig(images=10, method="fp16")
    path, report = quantize_artefact(folder, config, data=named)
    assert (path.name, report["written"]) == (HALF_GRAPH, True)
    assert graph.read_card(path).metrics("validation").n == 20


def test_unmerged_adapters_are_not_pruned_or_exported(made: Path, tmp_path: Path) -> None:
    unmerged = made / "tiny-vit-lora" / "lora.safetensors"
    for command in (("prune", unmerged, "--out", tmp_path / "out"), ("export", unmerged)):
        with pytest.raises(ArtefactError, match="run `pocketzoo merge` before"):
            run_cli(*command)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def exported(made: Path, tmp_path: Path) -> Path:
    """A folder with an exported network and nothing else."""
    folder = tmp_path / "vit"
    folder.mkdir()
    for name in (GRAPH, "run.json"):
        shutil.copy(made / "tiny-vit-full" / name, folder / name)
    return folder


def test_what_is_not_better_is_not_tried_again(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "compress.quantize.trials.measure_speed",
        lambda *files: Speed(speedup=0.9, speedup_low=0.8, speedup_high=0.95, rounds=6, parent_ms=1, ms=2),
    )
    config = QuantizeConfig(images=8, max_drop=100.0, method="static")
    path, report = quantize_artefact(exported, config)
    assert (path.exists(), report["verdict"]) == (False, "slower")
    monkeypatch.setattr("compress.chain.quantize", None)
    assert quantize_artefact(exported / GRAPH, config)[1] == report


def test_unlabelled_pictures_need_no_data_set(exported: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (exported / "run.json").unlink()
    pictures = _pictures(tmp_path / "pictures")
    config = QuantizeConfig(max_drop=100.0, method="static")
    path, report = quantize_artefact(exported, config, calibrate=pictures)
    assert graph.read_card(path).lineage[-1].summary["calibrated_on"] == "unlabelled images"
    assert quantize_artefact(exported, config, calibrate=pictures) == (path, report)
    (pictures / "3.png").unlink()
    _, again = quantize_artefact(exported, config, calibrate=pictures)
    assert again["calibration_digest"] != report["calibration_digest"]
    with pytest.raises(ArtefactError, match="add --data"):
        quantize_artefact(exported, QuantizeConfig())


def _pictures(folder: Path) -> Path:
    folder.mkdir()
    for sample in make_samples(20):
        (folder / f"{sample.name}.png").write_bytes(sample.read())
    return folder


def test_what_has_data_is_not_left_with_other_pictures(exported: Path, tmp_path: Path) -> None:
    config = QuantizeConfig(images=8, max_drop=100.0, method="static")
    _, strange = quantize_artefact(exported, config, calibrate=_pictures(tmp_path / "pictures"))
    _, own = quantize_artefact(exported, config)
    assert (strange["unlabelled"], own["unlabelled"]) == (True, False)
    assert own["dataset"] is not None
    assert quantize_artefact(exported, config)[1] == own
    # The same data, named: the digest is the same.
    notes = read_notes(exported)
    assert quantize_artefact(exported, config, data=DataSource(name=notes.data.name))[1] == own
    changed = own | {"dataset": "of other data"}
    write_report(exported / INT8_GRAPH, changed)
    assert quantize_artefact(exported, config)[1] == changed
    assert quantize_artefact(exported, config, data=notes.data)[1]["dataset"] == own["dataset"]


def test_what_has_no_data_stays_calibrated_on_pictures(exported: Path, tmp_path: Path) -> None:
    (exported / "run.json").unlink()
    config = QuantizeConfig(images=8, max_drop=100.0, method="static")
    _, report = quantize_artefact(exported, config, calibrate=_pictures(tmp_path / "pictures"))
    assert quantize_artefact(exported, config)[1] == report


@pytest.mark.parametrize(("method", "again"), [("dynamic", False), ("fp16", False), ("static", True)])
def test_costs_are_asked_for_only_where_there_are_any(
    exported: Path, monkeypatch: pytest.MonkeyPatch, method: str, again: bool
) -> None:
    config = QuantizeConfig(images=8, max_drop=100.0, method=method)
    _, report = quantize_artefact(exported, config)
    assert report["sensitivity"] == []
    asked: list[bool] = []

    def quantized(*_: object, analyse: bool, **__: object) -> Quantized:
        asked.append(analyse)
        return Quantized(card=None, written=True, report=report)

    monkeypatch.setattr("compress.chain.quantize", quantized)
    quantize_artefact(exported, config, analyse=True)
    assert asked == [True] * again


def test_files_that_are_no_graphs_are_refused(exported: Path) -> None:
    other = exported / "weights.pt"
    other.write_bytes(b"")
    for path in (other, exported / "missing.pt"):
        with pytest.raises(ArtefactError, match=rf"expected an artefact's folder or \.onnx file, got .*{path.name}"):
            quantize_artefact(path, QuantizeConfig())


def test_named_data_measure_what_was_exported_without(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cnn"
    folder.mkdir()
    for name in (CHECKPOINT, GRAPH, "run.json"):
        shutil.copy(made / "tiny-resnet" / name, folder / name)
    named = read_notes(folder).data
    model, card = graph.load(folder / GRAPH)
    bare = dataclasses.replace(card, inform=dataclasses.replace(card.inform, metrics=()))
    graph.write(model, bare, folder / GRAPH)
    assert graph.read_card(export_artefact(folder)).inform.metrics == ()
    assert graph.read_card(export_artefact(folder, data=named)).metrics("validation") == card.metrics("validation")
    before = (folder / GRAPH).stat().st_mtime_ns
    export_artefact(folder, data=named)
    assert (folder / GRAPH).stat().st_mtime_ns == before


def test_a_table_of_costs_on_request(exported: Path) -> None:
    options = ("--method", "static", "--images", "8", "--max-drop", "100")
    assert run_cli("quantize", exported, *options).output.endswith(": written\n")
    lines = run_cli("quantize", exported, *options, "--sensitivity").output.splitlines()
    assert lines[0].split()[:2] == ["node", "operator"]
    assert len([line for line in lines if line.endswith("INT8")]) == len(lines) - 2
    assert lines[-1].startswith(f"{exported}: INT8 2.00x the speed of FP32 (1.90 to 2.10) in onnxruntime, ")
    found = json.loads(run_cli("quantize", exported, *options, "--json").output)
    assert found["report"]["sensitivity"][0].keys() >= {"node", "kind", "noise", "cost", "kept"}
    assert found["card"]["inform"]["precision"] == "int8"


def test_quantizing_what_is_not_there_or_done(exported: Path, made: Path) -> None:
    with pytest.raises(ArtefactError, match="run `pocketzoo export"):
        run_cli("quantize", exported / "other")
    with pytest.raises(ArtefactError, match="already quantized"):
        run_cli("quantize", made / "tiny-vit-full" / INT8_GRAPH)
