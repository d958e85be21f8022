"""What a measured row says of the ONNX file it belongs to: enough to print a table without the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.artefact.card import Card
from zoo.artefact.onnx_file import read_card
from zoo.artefact.predictor import Predictor
from zoo.base.files import sha256_file
from zoo.training.workspace import card_if_readable, read_notes

__all__ = ["engine_fields", "identity", "loaded_fields", "trained_on"]


def identity(path: Path, card: Card | None = None) -> dict[str, Any]:
    """Names, digest, size and origin of an ONNX file.

    Args:
        path: the file.
        card: its card, where the caller has read it.

    Raises:
        ArtefactError, CardError: there is no file, or no card in it.
    """
    card = card or read_card(path)
    notes = card_if_readable(read_notes, path.parent)
    return {
        "artefact": path.resolve().parent.name,
        "file": path.name,
        "digest": sha256_file(path),
        "graph": card.inform.graph,
        "bytes": path.stat().st_size,
        "macs": card.inform.macs,
        "precision": card.inform.precision,
        "role": notes.role if notes else "model",
        "trained_on": trained_on(card),
        "refit_of": card.refit_of,
    }


def engine_fields(predictor: Predictor) -> dict[str, Any]:
    """What computed the numbers of a row, why it did, and the precision where the graph says float32."""
    return {
        "engine": predictor.engine,
        "engine_reason": predictor.engine_reason,
        "hint": predictor.engine.partition("-")[2] or "f32",
    }


def loaded_fields(predictor: Predictor) -> dict[str, Any]:
    """Which file a predictor has loaded, and what computes there."""
    return {
        "artefact": predictor.card.name,
        "file": predictor.path.name,
        "digest": predictor.digest,
        "graph": predictor.card.inform.graph,
        **engine_fields(predictor),
    }


def trained_on(card: Card) -> str | None:
    """The data set of the last training; None for what was imported."""
    return next((str(entry.config["data"]["name"]) for entry in reversed(card.lineage) if "data" in entry.config), None)
