"""Which file an artefact's ONNX file was made from, by what its card and theirs record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Card, LineageEntry
from zoo.base.files import CHECKPOINT, GRAPH, sha256_file
from zoo.training.workspace import card_if_readable

__all__ = ["find_ancestors", "find_parent", "folders_with"]


def find_parent(path: Path, card: Card, roots: Iterable[Path]) -> Path | None:
    """The ONNX file that an ONNX file should be compared with; None where it cannot be found.

    That is the graph which a quantized file was made from, and of an exported pruned network the exported unpruned one;
    the nearest, where it was pruned several times.

    Args:
        path: the file.
        card: its card.
        roots: folders of artefacts to look in.
    """
    if not card.lineage:
        return None
    places = list(dict.fromkeys(root.resolve() for root in (path.resolve().parent.parent, *roots)))
    if card.lineage[-1].stage != "export":
        return _with_digest(card.lineage[-1].parent, path, places)
    for place in reversed(range(len(card.lineage))):
        if card.lineage[place].stage != "prune":
            continue
        before = card.lineage[:place]
        for folder in folders_with(before, card.lineage[place].parent, places):
            found = card_if_readable(graph.read_card, folder / GRAPH)
            if found and found.lineage[:-1] == before and found.lineage[-1].stage == "export":
                return folder / GRAPH
    return None


def find_ancestors(path: Path, card: Card, roots: Sequence[Path]) -> list[Path]:
    """What an ONNX file was made from, through quantization and every pruning, as far as it can be found.

    Args:
        path: the file.
        card: its card.
        roots: see :func:`find_parent`.

    Returns:
        The nearest first; empty where there is none.
    """
    found: list[Path] = []
    parent = find_parent(path, card, roots)
    while parent is not None:
        found.append(parent)
        parent = find_parent(parent, graph.read_card(parent), roots)
    return found


def _with_digest(digest: str | None, path: Path, places: Sequence[Path]) -> Path | None:
    beside = sorted(path.parent.glob("*.onnx"))
    others = (found for place in places for found in sorted(place.glob("*/*.onnx")))
    return next((found for found in (*beside, *others) if found != path and sha256_file(found) == digest), None)


def folders_with(before: tuple[LineageEntry, ...], digest: str | None, places: Sequence[Path]) -> Iterator[Path]:
    """Folders whose checkpoint has this lineage; where it is empty, this digest.

    A checkpoint's lineage holds the seconds and results of each of its stages, so that it tells trainings apart, and
    it stays when the test accuracy is added to the file, which changes the digest that the pruned network's lineage
    recorded. Only that digest tells networks apart that were never trained.
    """
    # It needs torch, which takes seconds to load; the parent of a quantized file is found without.
    from zoo.networks import checkpoint

    for place in places:
        for path in sorted(place.glob(f"*/{CHECKPOINT}")):
            card = card_if_readable(checkpoint.read_card, path)
            if card and card.lineage == before and (before or sha256_file(path) == digest):
                yield path.parent
