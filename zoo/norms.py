"""BatchNorm statistics measured anew over many images, with the weights as they are.

"Precise BN": Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from zoo.batches import Images, Normalise

__all__ = ["even_chunks", "reestimate"]


def reestimate(
    model: nn.Module,
    layers: Sequence[nn.modules.batchnorm._BatchNorm],
    images: Images,
    *,
    order: Sequence[int],
    batch_size: int,
    device: torch.device,
) -> None:
    """Measure mean and variance of `layers` over `images`, in place; the network ends in evaluation mode.

    Only these layers are in training mode meanwhile, and their momentum is cumulative: every batch counts the same.

    Args:
        model: on `device`.
        layers: its BatchNorm layers with running statistics.
        images: without augmentation.
        order: indices of the images to use.
        batch_size: at most so many images at once; the batches are as even as they come.
        device: where to compute.
    """
    prepare = Normalise(images.spec, device)
    model.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative: PyTorch's documentation of BatchNorm2d
        layer.train()
    with torch.no_grad():
        for batch, _ in images.batches(even_chunks(order, batch_size)):
            model(prepare(batch.to(device)))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


def even_chunks(order: Sequence[int], size: int) -> list[list[int]]:
    """Batches that differ by at most one image: each weighs the same in a cumulative average."""
    count = math.ceil(len(order) / size)
    return [list(order[index * len(order) // count : (index + 1) * len(order) // count]) for index in range(count)]
