"""Refit: settings that were chosen on validation images, trained once more on training and validation images together.

The same start, the same number of epochs and so the whole schedule of the learning rate; the last epoch is kept, as no
image is left to choose one by. scikit-learn calls it so, too (`GridSearchCV(refit=True)`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.artefact.card import Card
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import CHECKPOINT, checkpoint_path, output_root
from zoo.base.names import check_name
from zoo.base.progress import note
from zoo.networks.checkpoint import read_card
from zoo.networks.weights.first_weights import absolute_weights, weights_digest
from zoo.training.loop.distributed import join_world
from zoo.training.parents import folders_with
from zoo.training.recipe import Run
from zoo.training.workspace import card_if_readable, occupied, read_notes

__all__ = ["ENDING", "refit_run"]

ENDING = "-refit"


def refit_run(artefact: Path, out: Path | None = None, *, weights: str | None = None, test: bool = False) -> Run:
    """The run that refits an artefact; says for how many epochs and why.

    Args:
        artefact: its folder or checkpoint, as `train` left it.
        out: folder of the new artefact; default: output/NAME-refit.
        weights: the file that its training began with, where that was a file: its card knows the digest alone.
        test: read the test split at the end.

    Returns:
        The run, for zoo.training.stage.train with `out`'s parent; a `start` in it is a whole path.

    Raises:
        ArtefactError: it was not made by training alone, is a refit, records settings that this version cannot read,
            or started from an artefact that is gone.
        UsageError: a schedule that needs validation images, other first weights, or `out` has another artefact.
        DataError: the data has changed since.
    """
    if artefact.suffix == ".onnx":
        raise ArtefactError(
            f"{artefact}: refit repeats a training, which the checkpoint records; name {artefact.parent}"
        )
    path = checkpoint_path(artefact)
    card = read_card(path)
    place = _training(card)
    entry = card.lineage[place]
    config, folder = entry.config, path.resolve().parent
    root = output_root().resolve()
    name = str(folder.relative_to(root)) if folder.is_relative_to(root) else folder.name
    target = out if out is not None else output_root() / f"{name.replace('/', '-')}{ENDING}"
    check_name(target.name)
    _check_free(target, name)
    notes = read_notes(path.parent)
    dataset = notes.data.open_for(card)
    epochs, reason = _epochs(card, entry.config["fit"], entry.summary)
    before = card.lineage[:place]
    started = entry.parent is not None
    document = {
        **{key: config.get(key) for key in ("size", "head", "lora", "mask", "unlabelled")},
        "name": target.name,
        "model": "" if started else config["model"],
        "arguments": {} if started else config["arguments"],
        "start": str(_start(card, before, entry.parent, (folder.parent, root))) if started else "",
        "weights": _weights(card, config["weights"], weights),
        "data": notes.data.name,
        "images_per_split": notes.data.per_split,
        "split_seed": notes.data.seed,
        "thin": dataclasses.asdict(notes.data.thin) if notes.data.thin else None,
        "labels": notes.data.labels,
        # What is white is not measured anew: the images that join could say otherwise.
        "reading": dataclasses.asdict(notes.data.reading) | {"range": card.use.input.range},
        "role": notes.role,
        "test": test,
        "test_on": notes.test.name if notes.test != notes.data else "",
        "refit": {"of": name, "temperature": card.use.temperature},
        "train": {**config["fit"], "epochs": epochs, "keep": "last", "stop_after": 0},
    }
    try:
        run = to_dataclass(Run, document, f"{path}: its training")
    except (DocumentError, UsageError) as error:
        raise ArtefactError(f"{error}; another version of pocketzoo trained it, so train it again first") from error
    if join_world().first:
        counts = [len(dataset.splits[split]) for split in ("train", "validation")]
        note(
            f"{target.name}: {epochs} epochs, {reason}; {counts[0]} images of train and {counts[1]} of validation; the "
            "last epoch is kept"
        )
    return run


def _training(card: Card) -> int:
    """Place of the training in a lineage that ends with it, or with the merging of its adapters."""
    stages = [entry.stage for entry in card.lineage]
    if card.refit_of is not None:
        raise ArtefactError(
            f"{card.name} is a refit of {card.refit_of} and has no validation images left to join; refit that one"
        )
    if "train" not in stages:
        raise ArtefactError(
            f"{card.name} was not trained (made by {', '.join(stages) or 'nothing that it records'}), so there are no "
            f"settings to repeat; `pocketzoo train --data FOLDER --set start={card.name}` trains it"
        )
    last = len(stages) - 1 - (stages[-1] == "merge")
    if stages[last] != "train":
        raise ArtefactError(
            f"{card.name} was made by {', '.join(stages)}, and only a training can be repeated on more images; refit "
            "the artefact that it was made from"
        )
    if "fit" not in card.lineage[last].config:
        raise ArtefactError(
            f"{card.name} was fitted by `pocketzoo probe`, not trained; train its classifier "
            "(`pocketzoo train --set train.freeze.stages=1`) and refit that"
        )
    return last


def _check_free(target: Path, name: str) -> None:
    """Only a refit of the same artefact is written over."""
    card = card_if_readable(read_card, target / CHECKPOINT)
    if (target / CHECKPOINT).exists() and (card is None or card.refit_of != name):
        raise occupied(target, card, CHECKPOINT)


def _epochs(card: Card, fit: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[int, str]:
    """For how many epochs to train, and why."""
    if fit["schedule"] == "plateau":
        raise UsageError(
            f"{card.name}: train.schedule = 'plateau' lowers the rate by the validation loss, and a refit has no "
            "validation images; train it with another schedule (--set train.schedule=cosine), then refit that"
        )
    planned, trained = int(fit["epochs"]), int(summary["epochs"])
    if trained < planned:
        return trained, f"after which the training of {card.name} ended, of {planned}"
    return planned, f"as {card.name} was trained"


def _start(card: Card, before: tuple[Any, ...], digest: str | None, places: tuple[Path, ...]) -> Path:
    """The folder of the artefact that a training started from."""
    found = next(folders_with(before, digest, places), None)
    if found is None:
        stages = ", ".join(step.stage for step in before) or "no stage"
        raise ArtefactError(
            f"{card.name} started from an artefact (made by {stages}) that is not, or not unchanged, in "
            f"{' or '.join(map(str, dict.fromkeys(places)))}; put it back, or train {card.name} again first"
        )
    return found.resolve()


def _weights(card: Card, wanted: str, given: str | None) -> str:
    """The first weights that a card tells by name or digest."""
    if given is None and wanted in ("none", "pretrained"):
        return wanted
    if given is None:
        raise UsageError(
            f"{card.name} began with the weights of a file ({card.inform.source}), of which its card knows the digest "
            "alone; name the file: --weights FILE"
        )
    if weights_digest(given) != wanted:
        raise UsageError(f"--weights {given}: {card.name} began with other weights ({card.inform.source}: {wanted})")
    return absolute_weights(given)
