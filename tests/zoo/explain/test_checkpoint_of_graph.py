"""Which checkpoint an ONNX file means."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.artefacts import TRAIN, exported, pruned, quantized, rewrite, write_checkpoint
from tests.zoo.factories import write_artefact
from zoo.base.errors import ArtefactError
from zoo.explain.checkpoint_of_graph import checkpoint_for


def test_folders_and_checkpoints_are_what_they_are(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "cat", (TRAIN,))
    assert checkpoint_for(tmp_path / "cat") == checkpoint_for(path) == path
    with pytest.raises(ArtefactError, match="no checkpoint at"):
        checkpoint_for(tmp_path / "dog")


@pytest.mark.parametrize("lineage", [(TRAIN,), ()])
def test_graphs_mean_the_checkpoint_beside_them(tmp_path: Path, lineage: tuple[object, ...]) -> None:
    path = write_checkpoint(tmp_path / "cat", lineage)  # type: ignore[arg-type]
    graph = exported(path)
    assert checkpoint_for(graph) == checkpoint_for(quantized(graph)) == path
    if lineage:
        # A test accuracy was added since: another digest, the same training.
        rewrite(path)
        assert checkpoint_for(graph) == path


def test_another_checkpoint_beside_a_graph_is_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "cat", (TRAIN,))
    graph = exported(path)
    child = pruned(path, tmp_path / "cat-pruned")
    child.replace(path)
    with pytest.raises(ArtefactError, match=r"model\.onnx was not exported from .*model\.safetensors; name the folder"):
        checkpoint_for(graph)
    path.unlink()
    with pytest.raises(ArtefactError, match=r"there is no model\.safetensors beside it"):
        checkpoint_for(graph)


def test_an_untrained_network_is_told_apart_by_its_digest(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "cat", ())
    graph = exported(path)
    rewrite(path)
    with pytest.raises(ArtefactError, match="was not exported from"):
        checkpoint_for(graph)


def test_a_graph_that_was_never_exported_is_refused(tmp_path: Path) -> None:
    from tests.zoo.factories import make_card

    write_checkpoint(tmp_path / "cat", ())
    write_artefact(tmp_path / "cat" / "model.onnx", make_card(stages=("train",)))
    with pytest.raises(ArtefactError, match="was not exported from"):
        checkpoint_for(tmp_path / "cat" / "model.onnx")
