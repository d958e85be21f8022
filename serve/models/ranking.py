"""Which model is the best: the default, unless one is set."""

from __future__ import annotations

from collections.abc import Mapping

from serve.models.folder import Artefact
from zoo.artefact.card import Card
from zoo.base.errors import PocketzooError

__all__ = ["best_first"]


def best_first(artefacts: Mapping[str, Artefact]) -> list[str]:
    """Names of models by validation accuracy, then by size of the file; what was not measured or read comes last."""

    def rank(artefact: Artefact) -> tuple[float, int, str]:
        card = _card(artefact)
        measured = card.metrics("validation") if card else None
        return (-measured.top1 if measured else 1.0, artefact.bytes, artefact.name)

    return [artefact.name for artefact in sorted(artefacts.values(), key=rank)]


def _card(artefact: Artefact) -> Card | None:
    try:
        return artefact.card()
    except PocketzooError:
        return None
