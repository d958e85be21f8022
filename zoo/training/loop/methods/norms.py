"""BatchNorm statistics measured anew over many images, with the weights as they are.

"Precise BN": Wu & Johnson 2021, "Rethinking 'Batch' in BatchNorm", arXiv 2105.07576, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from zoo.data.decoded import DecodedImages, outputs

__all__ = ["even_chunks", "reestimate"]


def reestimate(
    model: nn.Module,
    layers: Sequence[nn.modules.batchnorm._BatchNorm],
    images: DecodedImages,
    *,
    order: Sequence[int],
    batch_size: int,
    device: torch.device,
) -> None:
    """Measure mean and variance of `layers` over `images`, in place; the network ends in evaluation mode.

    Only these layers are in training mode meanwhile, so that each sees what the layers before it put out when they
    normalise with a batch's own statistics. The variance is the population's, over all images: the mean of squares
    minus the square of the mean. (PyTorch's cumulative average would leave out how the batches' means differ, and
    divide by n - 1 in each.)

    Args:
        model: on `device`.
        layers: its BatchNorm layers with running statistics.
        images: without augmentation.
        order: indices of the images to use.
        batch_size: at most so many images at once; the batches are as even as they come.
        device: where to compute.
    """
    model.eval()
    momenta = [layer.momentum for layer in layers]
    totals = {layer: _Moments(layer) for layer in layers}
    handles = [layer.register_forward_hook(lambda layer, given, _: totals[layer].add(given[0])) for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = 1.0  # The running statistics are those of the last batch.
            layer.train()
        for _ in outputs(model, images.spec, images.batches(even_chunks(order, batch_size)), device):
            pass
    finally:
        for handle in handles:
            handle.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.eval()
    for moments in totals.values():
        moments.settle()


class _Moments:
    """Sums over batches of what one layer saw, per channel, in double precision: its squares are subtracted later."""

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        self._layer = layer
        self._values = 0
        self._sum = self._squares = torch.zeros(layer.num_features, dtype=torch.float64)

    def add(self, features: torch.Tensor) -> None:
        """Add the batch [B, C, ...] whose statistics the layer has just taken."""
        mean, unbiased = self._layer.running_mean, self._layer.running_var
        assert mean is not None
        assert unbiased is not None
        count = features.numel() // features.shape[1]
        means = mean.double().cpu()
        self._values += count
        self._sum = self._sum + count * means
        self._squares = self._squares + (count - 1) * unbiased.double().cpu() + count * means.square()

    def settle(self) -> None:
        """Give the layer the statistics of all batches; one that was never called keeps its reset ones."""
        if self._values:
            mean = self._sum / self._values
            assert self._layer.running_mean is not None
            assert self._layer.running_var is not None
            self._layer.running_mean.copy_(mean)
            self._layer.running_var.copy_((self._squares / self._values - mean.square()).clamp(min=0))


def even_chunks(order: Sequence[int], size: int) -> list[list[int]]:
    """Batches that differ by at most one image: each weighs the same in a cumulative average."""
    count = math.ceil(len(order) / size)
    return [list(order[index * len(order) // count : (index + 1) * len(order) // count]) for index in range(count)]
