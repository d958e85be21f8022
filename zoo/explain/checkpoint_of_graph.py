"""The checkpoint behind a file: networks are looked into where their weights are, not in an exported graph."""

from __future__ import annotations

from pathlib import Path

from zoo.artefact import onnx_file as graph
from zoo.artefact.card import LineageEntry
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, checkpoint_path, sha256_file
from zoo.networks import checkpoint

__all__ = ["checkpoint_for"]


def checkpoint_for(artefact: Path) -> Path:
    """The checkpoint that a name means; of an ONNX file the one beside it, if the graph was exported from it.

    Raises:
        ArtefactError: there is no checkpoint, or the graph was made from another one.
        CardError: a file without a card, or with a malformed one.
    """
    if artefact.suffix != ".onnx" or artefact.is_dir():
        return checkpoint_path(artefact)
    lineage = graph.read_card(artefact).lineage
    beside = artefact.with_name(CHECKPOINT)
    if not beside.is_file():
        raise ArtefactError(
            f"{artefact}: a graph cannot be looked into, and there is no {CHECKPOINT} beside it; "
            "name the folder of the checkpoint that it was exported from"
        )
    if not _exported_from(lineage, beside):
        raise ArtefactError(
            f"{artefact} was not exported from {beside}; name the folder of the checkpoint that it was made from"
        )
    return beside


def _exported_from(lineage: tuple[LineageEntry, ...], path: Path) -> bool:
    stages = [stage.stage for stage in lineage]
    if "export" not in stages:
        return False
    place = stages.index("export")
    # A test accuracy that is added to a checkpoint changes its digest, not its lineage, which tells trainings apart.
    same = checkpoint.read_card(path).lineage == lineage[:place]
    return same if place else same and sha256_file(path) == lineage[place].parent
