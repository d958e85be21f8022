"""Which artefacts belong together: one, and what was pruned from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Card
from zoo.base.files import GRAPH, output_root
from zoo.base.progress import note
from zoo.training.parents import find_parent

__all__ = ["Network", "families"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """One artefact of a family: its folder and the card of its exported graph."""

    folder: Path
    form: str
    """`parent`, or `pruned`."""
    card: Card

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name


def families(artefacts: Sequence[Path]) -> list[list[Network]]:
    """Artefacts with those that they were pruned from, one list per family, the unpruned one first.

    What was pruned from something that is not there any more is a family of its own, and is said.

    Raises:
        ArtefactError: an artefact has no exported graph.
    """
    found: dict[Path, list[Network]] = {}
    for artefact in artefacts:
        folder = (artefact if artefact.is_dir() or not artefact.suffix else artefact.parent).resolve()
        card = graph.read_card(folder / GRAPH)
        parent = find_parent(folder / GRAPH, card, [output_root()])
        first = folder if parent is None else parent.parent
        pruned = parent is not None or any(stage.stage == "prune" for stage in card.lineage)
        if pruned and parent is None:
            note(
                f"{folder.name}: what it was pruned from is not exported under {output_root()}, so there is nothing to "
                "hold it against; export that too"
            )
        own = Network(folder=folder, form="pruned" if pruned else "parent", card=card)
        members = found.setdefault(first, [])
        if parent is not None and not any(member.folder == first for member in members):
            members.append(Network(folder=first, form="parent", card=graph.read_card(parent)))
        if not any(member.folder == folder for member in members):
            members.append(own)
    return [sorted(members, key=lambda member: member.form != "parent") for members in found.values()]
