"""Tests of compress.chain, on what the recipe `tiny` made."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import run_cli
from zoo import checkpoint, graph
from zoo.errors import ArtefactError
from zoo.files import CHECKPOINT, GRAPH, INT8_GRAPH, sha256_file

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
    assert left == {CHECKPOINT, GRAPH, INT8_GRAPH, "run.json", "log.csv"}


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


def test_unmerged_adapters_are_not_pruned_or_exported(made: Path, tmp_path: Path) -> None:
    unmerged = made / "tiny-vit-lora" / "lora.safetensors"
    for command in (("prune", unmerged, "--out", tmp_path / "out"), ("export", unmerged)):
        with pytest.raises(ArtefactError, match="run `pocketzoo merge` before"):
            run_cli(*command)
    assert not (tmp_path / "out").exists()
