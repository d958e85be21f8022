"""What is served, in plain values, for GET /models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from serve.models.folder import Artefact
from serve.models.model import VERSION_DIGITS
from serve.models.snapshot import View
from zoo.artefact.card import Card
from zoo.base.errors import PocketzooError

__all__ = ["describe"]


def describe(view: View, reason: Callable[[Exception | str], str]) -> dict[str, Any]:
    """Every model of a view. Reads, once, the files that are not loaded, for their cards and digests.

    Args:
        view: of one moment.
        reason: makes of an error what clients may read.
    """
    models = [_describe(view, artefact, reason) for artefact in view.artefacts.values()]
    return {"default": view.default, "models": models}


def _describe(view: View, artefact: Artefact, reason: Callable[[Exception | str], str]) -> dict[str, Any]:
    name, model = artefact.name, view.loaded.get(artefact.name)
    error = view.problems.get(name)
    card: Card | None = None
    try:
        card = model.card if model else artefact.card()
    except PocketzooError as caught:
        error = error or reason(caught)
    digest = model.digest if model else artefact.digest()
    return {
        "name": name,
        "file": artefact.file,
        "version": digest[:VERSION_DIGITS] if digest else None,
        "digest": digest,
        "bytes": model.bytes if model else artefact.bytes,
        "precision": card.inform.precision if card else None,
        "classes": len(card.use.labels) if card else None,
        "labels": list(card.use.labels) if card else None,
        "input": {"colour": card.use.input.colour, "size": list(card.use.input.size)} if card else None,
        "accuracy": _accuracy(card, model.engine if model else None) if card else None,
        "loaded": model is not None,
        "engine": model.engine if model else None,
        "engine_reason": reason(model.engine_reason) if model else None,
        "error": error,
    }


def _accuracy(card: Card, engine: str | None) -> dict[str, Any] | None:
    found = card.metrics("validation", engine)
    return {"dataset": found.dataset, "split": found.split, "n": found.n, "top1": found.top1} if found else None
