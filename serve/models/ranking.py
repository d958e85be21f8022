"""Which model is the best: the default, unless one is set."""

from __future__ import annotations

from collections.abc import Iterator

from serve.models.snapshot import View
from serve.models.versions import VersionStore
from zoo.artefact.card import Card
from zoo.artefact.onnx_file import read_card
from zoo.base.errors import PocketzooError

__all__ = ["best_first"]


def best_first(view: View, store: VersionStore) -> list[str]:
    """Names of a view's models by validation accuracy, then by size of the file; what was not measured comes last.

    A model whose file cannot be read is ranked by the version that would answer in its place.
    """

    def rank(name: str) -> tuple[float, int, str]:
        card = next(_cards(view, store, name), None)
        measured = card.metrics("validation") if card else None
        return (-measured.top1 if measured else 1.0, view.artefacts[name].bytes, name)

    return sorted(view.artefacts, key=rank)


def _cards(view: View, store: VersionStore, name: str) -> Iterator[Card]:
    """Cards of what would answer to a name, likeliest first."""
    pins = [pin for pin in (view.state.pins.get(name),) if pin]
    for version in (*pins, None, *store.versions(name)[:1]):
        try:
            if version is None:
                yield view.artefacts[name].card()
            elif (path := store.path(name, version)) is not None:
                yield read_card(path)
        except PocketzooError:
            continue
