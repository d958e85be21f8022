"""What an artefact's folder remembers beside it: where its data is on this machine, and what is up to date."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from zoo.artefact.card import Card, LineageEntry
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError, DataError, PocketzooError, UsageError
from zoo.base.files import write_bytes
from zoo.data.catalogue import open_dataset
from zoo.data.dataset import Dataset
from zoo.data.folders.reading import Reading
from zoo.data.splits import Thin, joined

__all__ = [
    "DataSource",
    "Notes",
    "card_if_readable",
    "has_notes",
    "is_current",
    "notes_for",
    "occupied",
    "read_notes",
    "without_data",
    "write_notes",
]

_FILE = "run.json"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """How to open a data set again on this machine."""

    name: str
    """A data set's name, or the path of a folder or list."""
    seed: int = 0
    per_split: int | None = None
    thin: Thin | None = None
    labels: float = 1.0
    """Share of the training images whose labels stay."""
    reading: Reading = field(default_factory=Reading)
    """How the folder or list is to be read, where it could mean two things."""
    joined: bool = False
    """Whether validation images are training images: a refit's; see zoo.data.splits.joined."""

    def open(self) -> Dataset:
        """The data set; errors as zoo.data.catalogue.open_dataset."""
        dataset = open_dataset(
            self.name,
            seed=self.seed,
            per_split=self.per_split,
            thin=self.thin,
            labels=self.labels,
            reading=self.reading,
        )
        return joined(dataset) if self.joined else dataset

    def open_for(self, card: Card) -> Dataset:
        """The data set that `card` was trained on.

        Raises:
            DataError: it has changed since, so that its splits may be others: what was trained on could be tested on.
        """
        # What is white in the images is what the card says, unless this says it.
        white = self.reading.range or card.use.input.range
        dataset = dataclasses.replace(self, reading=dataclasses.replace(self.reading, range=white)).open()
        trained = [entry.config["data"] for entry in card.lineage if "data" in entry.config]
        if trained and trained[-1]["name"] == dataset.name and trained[-1]["digest"] != dataset.digest:
            raise DataError(
                f"{self.name} has changed since {card.name} was trained on it, and its splits may have; "
                "train again (pocketzoo train, or make train), then repeat this"
            )
        return dataset


@dataclass(frozen=True, kw_only=True)
class Notes:
    """The content of run.json."""

    role: str
    """`model` or `control`."""
    data: DataSource
    """What it was trained, calibrated and validated on."""
    test: DataSource
    """Whose test split measures it."""


def write_notes(folder: Path, notes: Notes) -> None:
    """Write run.json into an artefact's folder."""
    write_bytes(folder / _FILE, json.dumps(dataclasses.asdict(notes), indent=2).encode())


def has_notes(folder: Path) -> bool:
    """Whether an artefact's folder has a run.json."""
    return (folder / _FILE).is_file()


def read_notes(folder: Path) -> Notes:
    """Read run.json of an artefact's folder.

    Raises:
        ArtefactError: there is none, or one that cannot be used, so the data set has to be named.
    """
    path = folder / _FILE
    try:
        return to_dataclass(Notes, json.loads(path.read_text(encoding="utf-8")), str(path))
    except FileNotFoundError as error:
        raise ArtefactError(f"{folder.name} has no {_FILE}, which says where its data is; add --data") from error
    except (OSError, ValueError, DocumentError) as error:
        reason = error if isinstance(error, DocumentError) else f"{path}: {getattr(error, 'strerror', None) or error}"
        raise ArtefactError(f"{reason}; this file says where the data of {folder.name} is; add --data") from error


def notes_for(folder: Path, source: DataSource | None) -> Notes:
    """What is known of an artefact's data where `source`, if given, goes before the folder's run.json.

    Where both name the same data set, everything but the name is run.json's: the seed of the splits and what was left
    out decide which images were trained on.

    Raises:
        ArtefactError: neither says where the data is.
    """
    if source is None:
        return read_notes(folder)
    notes = card_if_readable(read_notes, folder)
    # A folder of images may have moved; it has the same name as a data set.
    if notes is None or Path(notes.data.name).name != Path(source.name).name:
        return Notes(role="model", data=source, test=source)
    data = dataclasses.replace(notes.data, name=source.name)
    return dataclasses.replace(notes, data=data, test=data if notes.test == notes.data else notes.test)


def without_data(folder: Path, card: Card, source: DataSource | None = None) -> bool:
    """Whether no data set belongs to an artefact: it was imported, not trained, and nobody has named one since.

    Its folder has no run.json then. One that was trained must have it, or the command must name the data.

    Args:
        folder: of the artefact.
        card: its card.
        source: what the command names, if anything.
    """
    imported = bool(card.lineage) and card.lineage[0].stage == "import"
    return source is None and imported and not (folder / _FILE).exists()


def is_current(
    done: Card | Sequence[LineageEntry] | None,
    steps: Sequence[tuple[str, Mapping[str, Any] | None]],
    parent: str | None,
) -> bool:
    """Whether a lineage ends with exactly these stages, the first of them made from `parent`.

    Args:
        done: card of the artefact at the target path, or a lineage; None where there is none.
        steps: stage name and config of each, in order; None for a config: whatever it was.
        parent: SHA-256 of the file the first of them reads.
    """
    lineage = done.lineage if isinstance(done, Card) else done or ()
    if len(lineage) < len(steps):
        return False
    tail = lineage[len(lineage) - len(steps) :]
    same = all(
        entry.stage == stage and (config is None or _as_json(entry.config) == _as_json(config))
        for entry, (stage, config) in zip(tail, steps, strict=True)
    )
    return same and tail[0].parent == parent


def _as_json(config: Mapping[str, Any]) -> Any:
    """As it comes back from a file: tuples and lists are the same there."""
    return json.loads(json.dumps(config))


def occupied(folder: Path, card: Card | None, file: str) -> UsageError:
    """The refusal to write over another artefact.

    Args:
        folder: where it is.
        card: of what is there, where it can be read.
        file: the name of what is there.
    """
    made = f"{card.name}, made by {' and '.join(entry.stage for entry in card.lineage)}" if card else file
    return UsageError(
        f"--out {folder} has another artefact already ({made}), which stays as it is; name another folder, "
        "or remove that one yourself"
    )


def card_if_readable(read: Callable[[Path], T], path: Path) -> T | None:
    """What `read` finds at `path` (a card), or None where there is nothing readable."""
    try:
        return read(path)
    except PocketzooError:
        return None
