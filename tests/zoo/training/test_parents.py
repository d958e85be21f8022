"""Parents are found by what cards record: digests, and lineages where digests have changed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from tests.bench.artefacts import TRAIN, exported, family, pruned, quantized, rewrite, write_checkpoint
from zoo.artefact.onnx_file import read_card
from zoo.training.parents import find_ancestors, find_parent


def parent(path: Path, *roots: Path) -> Path | None:
    return find_parent(path, read_card(path), roots)


def test_each_file_of_a_family(tmp_path: Path) -> None:
    files = family(tmp_path)
    assert parent(files["parent"]) is None
    assert parent(files["int8"]) == files["parent"]
    assert parent(files["pruned"]) == files["parent"]
    assert parent(files["both"]) == files["pruned"]


def test_all_that_led_to_a_file(tmp_path: Path) -> None:
    files = family(tmp_path)
    assert find_ancestors(files["both"], read_card(files["both"]), []) == [files["pruned"], files["parent"]]
    assert find_ancestors(files["parent"], read_card(files["parent"]), []) == []


def test_an_artefact_elsewhere_has_its_parent_in_the_folder_of_artefacts(tmp_path: Path) -> None:
    files = family(tmp_path / "output")
    moved = tmp_path / "elsewhere" / "mine"
    shutil.copytree(files["pruned"].parent, moved)
    assert parent(moved / "model.onnx") is None
    assert parent(moved / "model.onnx", tmp_path / "output") == files["parent"]
    (moved / "model.onnx").unlink()
    assert parent(moved / "model.int8.onnx", tmp_path / "output") == files["pruned"]


def test_a_test_accuracy_added_later_changes_nothing(tmp_path: Path) -> None:
    files = family(tmp_path)
    rewrite(tmp_path / "cat" / "model.safetensors")
    assert parent(files["pruned"]) == files["parent"]


def test_what_was_made_anew_is_no_parent(tmp_path: Path) -> None:
    files = family(tmp_path)
    exported(tmp_path / "cat-pruned" / "model.safetensors", seed=5)
    assert parent(files["both"]) is None
    write_checkpoint(tmp_path / "cat", (dataclasses.replace(TRAIN, seconds=99.0),))
    assert parent(files["pruned"]) is None


def test_a_graph_of_an_earlier_checkpoint_is_no_parent(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "cat", (TRAIN,))
    exported(first)
    again = write_checkpoint(tmp_path / "cat", (dataclasses.replace(TRAIN, seconds=99.0),))
    child = exported(pruned(again, tmp_path / "cat-pruned"))
    assert parent(child) is None
    assert parent(exported(again)) is None
    assert parent(child) == tmp_path / "cat" / "model.onnx"


def test_the_nearest_of_two_prunings(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path / "cat", (TRAIN,))
    exported(first)
    second = pruned(first, tmp_path / "half")
    third = exported(pruned(second, tmp_path / "quarter"))
    assert parent(third) == tmp_path / "cat" / "model.onnx"
    assert parent(third) != exported(second)
    assert parent(third) == tmp_path / "half" / "model.onnx"


def test_networks_that_were_never_trained_are_told_apart_by_digest(tmp_path: Path) -> None:
    for name in ("a", "b"):
        exported(write_checkpoint(tmp_path / name, ()))
    child = exported(pruned(tmp_path / "b" / "model.safetensors", tmp_path / "b-pruned"))
    assert parent(child) == tmp_path / "b" / "model.onnx"
    rewrite(tmp_path / "b" / "model.safetensors")
    assert parent(child) is None
    assert parent(quantized(child)) == child
