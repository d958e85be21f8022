"""LeNet's modern shorthand: two convolutions, two poolings, one linear layer."""

from __future__ import annotations

import torch
from torch import nn

from zoo.networks.own.table import register

__all__ = ["LeNet"]


class LeNet(nn.Module):
    """Float32 [B, channels, 28, 28] to logits [B, classes]; 28,938 parameters for one channel and ten classes.

    Layers: 5 x 5 convolution to 16 maps, pooling, 5 x 5 convolution to 32 maps, pooling, linear. After LeCun et al.
    1998, "Gradient-based learning applied to document recognition", with ReLU, maximum pooling and zero padding.
    """

    def __init__(self, *, classes: int, channels: int) -> None:
        super().__init__()
        self.img_size = 28
        self.features = nn.Sequential(
            nn.Conv2d(channels, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(32 * 7 * 7, classes)

    def get_classifier(self) -> nn.Linear:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new classifier with random weights for `num_classes` labels."""
        self.head = nn.Linear(self.head.in_features, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of images [B, channels, H, W]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


@register("lenet")
def _lenet(*, classes: int, channels: int) -> nn.Module:
    return LeNet(classes=classes, channels=channels)
