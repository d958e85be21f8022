"""AlexNet and GoogLeNet: torchvision's layers under torchvision's names, in the form that this zoo builds networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torchvision
from torch import nn

from zoo.base.errors import UsageError
from zoo.networks.own.table import register

__all__ = ["TORCHVISION", "Classic"]

TORCHVISION: Mapping[str, str] = {
    "alexnet": "AlexNet_Weights.IMAGENET1K_V1",
    "googlenet": "GoogLeNet_Weights.IMAGENET1K_V1",
}
"""Architecture -> the name of its pretrained weights in torchvision."""


class Classic(nn.Module):
    """Layers one after the other: float32 [B, channels, H, W] to logits [B, classes].

    The children keep their names, so torchvision's state dicts fit; `last` is the classifier's name.
    """

    def __init__(self, layers: dict[str, nn.Module], *, last: str) -> None:
        super().__init__()
        self.last = last
        for name, layer in layers.items():
            self.add_module(name, layer)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.get_submodule(self.last)

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new classifier with random weights for `num_classes` labels."""
        old = self.get_classifier()
        assert isinstance(old, nn.Linear)
        self.set_submodule(self.last, nn.Linear(old.in_features, num_classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of images [B, channels, H, W]."""
        for name, layer in self.named_children():
            images = layer(images)
            if name == "avgpool":
                images = images.flatten(1)  # [B, C, H, W] -> [B, C H W]
        return images


@register("alexnet")
def _alexnet(*, classes: int, channels: int, dense: int = 4096, dropout: float = 0.5) -> nn.Module:
    """AlexNet in one tower; Krizhevsky 2014, "One weird trick" (arXiv 1404.5997).

    Args:
        classes: number of labels.
        channels: number of colours.
        dense: width of its two dense layers (torchvision's weights are for 4,096).
        dropout: share of the dense layers' inputs that training sets to zero.
    """
    if isinstance(dense, bool) or not isinstance(dense, int) or dense < 1:
        raise UsageError(f"arguments.dense: expected a whole number of at least 1, got {dense!r}")
    parts = dict(torchvision.models.AlexNet(num_classes=classes, dropout=dropout).named_children())
    features, head = parts["features"], parts["classifier"]
    assert isinstance(features, nn.Sequential) and isinstance(head, nn.Sequential)
    if channels != 3:
        features[0] = nn.Conv2d(channels, 64, kernel_size=11, stride=4, padding=2)
    if dense != head[1].out_features:
        head[1], head[4], head[6] = nn.Linear(256 * 6 * 6, dense), nn.Linear(dense, dense), nn.Linear(dense, classes)
    return Classic(parts, last="classifier.6")


@register("googlenet")
def _googlenet(*, classes: int, channels: int, dropout: float = 0.2) -> nn.Module:
    """GoogLeNet with batch norm and without auxiliary classifiers; Szegedy et al. 2015 (arXiv 1409.4842).

    torchvision's GoogLeNet turns ImageNet's normalisation into the one its weights were trained with; here that one
    is the network's preprocessing itself (mean and standard deviation 0.5).
    """
    original = torchvision.models.GoogLeNet(
        num_classes=classes, aux_logits=False, transform_input=False, init_weights=True, dropout=dropout
    )
    parts = dict(original.named_children())
    if channels != 3:
        first = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        nn.init.trunc_normal_(first.weight, std=0.01, a=-2, b=2)  # as torchvision draws the others
        parts["conv1"].set_submodule("conv", first)
    return Classic(parts, last="fc")
