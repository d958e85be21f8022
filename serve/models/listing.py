"""What is served, in plain values, for GET /models and operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from serve.models.folder import Artefact
from serve.models.model import VERSION_DIGITS
from serve.models.snapshot import View
from serve.models.versions import VersionStore
from zoo.artefact.card import Card
from zoo.base.errors import PocketzooError

__all__ = ["describe"]


def describe(
    view: View, store: VersionStore, reason: Callable[[Exception | str], str], *, operator: bool
) -> dict[str, Any]:
    """Every model of a view. Reads, once, the files that are not loaded, for their cards and digests.

    Args:
        view: of one moment.
        store: the kept versions.
        reason: makes of an error what clients may read.
        operator: add pin, split and shadow.
    """
    models = [_describe(view, artefact, store, reason, operator) for artefact in view.artefacts.values()]
    return {"default": view.default, "models": models}


def _describe(
    view: View, artefact: Artefact, store: VersionStore, reason: Callable[[Exception | str], str], operator: bool
) -> dict[str, Any]:
    name, model = artefact.name, view.current.get(artefact.name)
    pin = view.state.pins.get(name)
    source = artefact if model or not pin else _pinned(artefact, pin, store)
    error = view.problems.get(name) or view.failed.get((name, None))
    card: Card | None = None
    try:
        card = model.card if model else source.card()
    except PocketzooError as caught:
        error = error or reason(caught)
    digest = model.digest if model else source.digest()
    version = digest[:VERSION_DIGITS] if digest else None
    about = {
        "name": name,
        "file": artefact.file,
        "version": version,
        "digest": digest,
        "bytes": model.bytes if model else source.bytes,
        "precision": card.inform.precision if card else None,
        "classes": len(card.use.labels) if card else None,
        "accuracy": _accuracy(card) if card else None,
        "loaded": model is not None,
        "error": error,
        "versions": [kept for kept in store.versions(name) if kept != version],
    }
    if not operator:
        return about
    split, shadow = view.state.splits.get(name), view.state.shadows.get(name)
    return {
        **about,
        "pinned": pin,
        "split": asdict(split) if split else None,
        "shadow": asdict(shadow) if shadow else None,
        "in_memory": sorted(version for owner, version in view.versions if owner == name),
    }


def _pinned(artefact: Artefact, pin: str, store: VersionStore) -> Artefact:
    path = store.path(artefact.name, pin)
    try:
        return Artefact(artefact.name, path) if path is not None else artefact
    except OSError:
        return artefact


def _accuracy(card: Card) -> dict[str, Any] | None:
    found = card.metrics("validation")
    return {"dataset": found.dataset, "split": found.split, "n": found.n, "top1": found.top1} if found else None
