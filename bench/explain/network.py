"""A trained network and one picture for it: what every explanation that looks inside a network begins with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from zoo.card import Card
from zoo.checkpoint import load
from zoo.files import checkpoint_path
from zoo.image import normalise, pixels

__all__ = ["open_network", "picture"]


def open_network(artefact: Path) -> tuple[nn.Module, Card]:
    """The network of an artefact's checkpoint, pruned ones too, in evaluation mode on the CPU, and its card.

    Args:
        artefact: its folder, or the checkpoint itself.

    Raises:
        ArtefactError: there is no checkpoint, or one whose tensors do not fit.
        CardError: no card, or one that contradicts the tensors.
    """
    return load(checkpoint_path(artefact))


def picture(data: bytes, card: Card) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
    """A picture's file as the network gets it, and the same to look at.

    Args:
        data: the bytes of the file.
        card: of the network.

    Returns:
        The input float32 [1, C, H, W], and the picture before it was normalised, uint8 [H, W, 3], grey where C is 1.

    Raises:
        ImageError: it cannot be decoded, or is too large or too elongated.
    """
    array = pixels(data, card.use.input)  # uint8 [H, W, C]
    return torch.from_numpy(normalise(array, card.use.input))[None], np.broadcast_to(array, (*array.shape[:2], 3))
