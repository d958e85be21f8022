"""One image for a network: what every explanation that looks inside a network begins with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from zoo.artefact.card import Card
from zoo.artefact.preprocess import normalise, pixels

__all__ = ["picture"]


def picture(data: bytes, card: Card) -> tuple[torch.Tensor, npt.NDArray[np.uint8]]:
    """An image's file as the network gets it, and the same to look at.

    Args:
        data: the bytes of the file.
        card: of the network.

    Returns:
        The input float32 [1, C, H, W], and the image before it was normalised, uint8 [H, W, 3], grey where C is 1.

    Raises:
        ImageError: it cannot be decoded, or is too large or too elongated.
    """
    array = pixels(data, card.use.input)  # uint8 [H, W, C]
    return torch.from_numpy(normalise(array, card.use.input))[None], np.broadcast_to(array, (*array.shape[:2], 3))
