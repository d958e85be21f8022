"""Which folder of artefacts a run gets: its own name, unless something of other data has it already.

Two folders of images that are both called `photos` become two artefacts; the second has a digest of its path at the end
of its name. The same folder finds its artefact again, also after it was moved.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, GRAPH, HALF_GRAPH, INT8_GRAPH, UNMERGED
from zoo.base.names import PRUNED, check_name
from zoo.data.folders.reading import name_of
from zoo.networks.checkpoint import read_card
from zoo.training.loop.state import STATE
from zoo.training.recipe import Run
from zoo.training.stage import source_of
from zoo.training.workspace import card_if_readable, read_notes

__all__ = ["named_apart", "trained_networks"]

_MADE = (CHECKPOINT, UNMERGED, STATE, GRAPH, INT8_GRAPH, HALF_GRAPH)
"""Files that hours of computing went into."""
_DIGITS = 6


def named_apart(runs: Sequence[Run], output: Path) -> tuple[Run, ...]:
    """The runs, with another name where theirs belongs to an artefact of other data.

    Args:
        runs: of one recipe.
        output: the folder of artefacts; nothing is written.

    Raises:
        UsageError: a name that the server would refuse.
        ArtefactError: both the name and the one with a digest are taken.
        DataError: the data has to be opened to tell, and cannot be.
    """
    renamed: dict[str, str] = {}
    found = []
    for run in runs:
        check_name(run.artefact)
        name = _name(run, output)
        renamed[run.artefact] = name
        start = renamed.get(run.start, run.start)
        # A run that keeps its name stays as it is: what was made by an unnamed one is up to date.
        found.append(run if name == run.artefact else dataclasses.replace(run, name=name))
        found[-1] = found[-1] if start == run.start else dataclasses.replace(found[-1], start=start)
    return tuple(found)


def trained_networks(data: str, output: Path) -> list[str]:
    """The architectures that were trained on this data by a run without a name of its own.

    Args:
        data: a data set's name, or a folder.
        output: the folder of artefacts.
    """
    found = []
    for path in sorted(output.glob(f"*/{CHECKPOINT}")):
        card = card_if_readable(read_card, path)
        if card is None:
            continue
        run = Run(data=data, model=card.build.architecture)
        if path.parent.name in _candidates(run) and _has_location(path.parent, run):
            found.append(run.model)
    return list(dict.fromkeys(found))


def _name(run: Run, output: Path) -> str:
    names = _candidates(run)
    for name in names:
        if _made(output / name) and _is_of(output / name, run):
            return name
    for name in names:
        places = (output / name, output / f"{name}{PRUNED}")
        if all(not _made(place) or _is_of(place, run) for place in places):
            return name
    raise ArtefactError(
        f"{' and '.join(str(output / name) for name in names)} hold artefacts that are not known to be of "
        f"{run.data}; name this one otherwise: --set name=NAME"
    )


def _candidates(run: Run) -> tuple[str, str]:
    digest = hashlib.sha256(_location(run.data).encode(errors="surrogateescape")).hexdigest()
    return run.artefact, f"{run.artefact}-{digest[:_DIGITS]}"


def _location(data: str) -> str:
    """What tells one source of data from another: a folder's whole path, or a data set's name."""
    return str(Path(data).resolve()) if "/" in data or Path(data).exists() else data


def _made(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _MADE)


def _has_location(folder: Path, run: Run) -> bool:
    notes = card_if_readable(read_notes, folder)
    return notes is not None and _location(notes.data.name) == _location(run.data)


def _is_of(folder: Path, run: Run) -> bool:
    """Whether an artefact is of a run's data: by run.json, or by its card where the data has moved since."""
    if _has_location(folder, run):
        return True
    cards = [card for name in (CHECKPOINT, UNMERGED) if (card := card_if_readable(read_card, folder / name))]
    trained = [entry.config["data"] for card in cards for entry in card.lineage if "data" in entry.config]
    # Opening a data set takes a while; another one has another name in most cases.
    if not trained or trained[-1].get("name") != name_of(_location(run.data)):
        return False
    return bool(trained[-1].get("digest") == source_of(run).open().digest)
