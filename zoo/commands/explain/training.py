"""The command that draws the page of a training."""

from __future__ import annotations

from zoo.base.commandline import Artefact
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT
from zoo.commands.explain.group import Out, explain, picture_path, say
from zoo.commands.runs import Data, notes_of

__all__ = ["training"]


@explain.command()
def training(artefact: Artefact, data: Data = None, out: Out = None) -> None:
    """One page about a training: loss, accuracy and rates, examples of what it saw, confusion.

    `pocketzoo train` draws it too. Goes to training.png in the artefact's folder, beside log.csv.
    """
    from zoo.explain.run_page import PAGE, draw_page, from_disk
    from zoo.networks.checkpoint import read_card

    folder = artefact if artefact.is_dir() else artefact.parent
    target = folder / PAGE if out is None else picture_path(artefact, out, "training")
    path = folder / CHECKPOINT
    if not path.is_file():
        raise ArtefactError(f"no checkpoint at {path}; name the folder of a training, like output/resnet")
    dataset = notes_of(path, data).data.open_for(read_card(path))
    draw_page(target, from_disk(folder, dataset))
    say(target)
