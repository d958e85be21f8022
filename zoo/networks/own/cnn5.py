"""cnn5: five blocks of convolution, activation, batch norm and pooling, then a dense layer and the classifier."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from zoo.base.errors import UsageError, unknown_name
from zoo.networks.own.table import register

__all__ = ["ACTIVATIONS", "Cnn5", "Cnn5Arguments", "macs_of", "parameters_of", "smallest_of"]

BLOCKS = 5

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "mish": nn.Mish,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
"""Name -> a function that makes the layer; none of them has parameters."""

GROWTHS = ("equal", "double", "halve")


@dataclass(frozen=True, kw_only=True)
class Cnn5Arguments:
    """The shape of a cnn5."""

    filters: int = 32
    """Width of the first block: its number of filters."""
    growth: str = "double"
    """From one block to the next the width stays `equal`, or it is `double` or `halve` (never less than one)."""
    kernel: int | tuple[int, ...] = 3
    """Edge of the filters in pixels: one for all blocks, or five."""
    padding: str | int = "same"
    """`same` (the convolution keeps the size), `valid` (no padding) or the number of zeros on each side."""
    activation: str = "relu"
    """A name in ACTIVATIONS; the dense layer has it too."""
    batch_norm: bool = True
    """Whether each block normalises what its activation returns."""
    dropout: float = 0.0
    """Share of the dense layer's outputs that training sets to zero."""
    dense: int = 256
    """Width of the dense layer."""
    img_size: int = 64
    """Edge of the square input in pixels; the dense layer's size depends on it."""

    def __post_init__(self) -> None:
        for name in ("filters", "dense", "img_size"):
            _check_whole(name, getattr(self, name), 1)
        if self.growth not in GROWTHS:
            raise unknown_name("growth", str(self.growth), GROWTHS)
        if self.activation not in ACTIVATIONS:
            raise unknown_name("activation", str(self.activation), ACTIVATIONS)
        if not isinstance(self.kernel, int) and len(self.kernel) != BLOCKS:
            raise UsageError(f"arguments.kernel: expected one number or {BLOCKS}, got {len(self.kernel)}")
        for edge in self.kernels:
            _check_whole("kernel", edge, 1)
        if self.padding not in ("same", "valid"):
            _check_whole("padding", self.padding, 0, "'same', 'valid' or ")
        if not isinstance(self.batch_norm, bool):
            raise UsageError(f"arguments.batch_norm: expected true or false, got {self.batch_norm!r}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise UsageError(f"arguments.dropout: expected a share in [0, 1), got {self.dropout!r}")
        if self.img_size < (least := smallest_of(self)):
            raise UsageError(
                f"cnn5 with the kernels {list(self.kernels)} and the padding {self.padding!r} needs at least "
                f"{least} pixels, got arguments.img_size={self.img_size}; raise it, or pad more (padding='same')"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of filters of each block."""
        if self.growth == "halve":
            return tuple(max(1, self.filters >> block) for block in range(BLOCKS))
        return tuple(self.filters << (block if self.growth == "double" else 0) for block in range(BLOCKS))

    @property
    def kernels(self) -> tuple[int, ...]:
        """Edge of each block's filters in pixels."""
        return (self.kernel,) * BLOCKS if isinstance(self.kernel, int) else tuple(self.kernel)


def parameters_of(arguments: Cnn5Arguments, *, classes: int, channels: int) -> int:
    """Number of parameters of a cnn5, in closed form; statistics of batch norm are not counted.

    A block of width c after width b with filters of edge k has k^2 b c + c, and 2 c for its batch norm; the dense
    layer of width d on c maps of edge e has c e^2 d + d, the classifier of K classes d K + K.
    """
    norm = 2 if arguments.batch_norm else 0
    blocks = sum(
        kernel**2 * before * width + width + norm * width for kernel, before, width in _layers(arguments, channels)
    )
    flat = arguments.widths[-1] * _edges(arguments)[-1][1] ** 2
    return blocks + (flat + 1) * arguments.dense + (arguments.dense + 1) * classes


def macs_of(arguments: Cnn5Arguments, *, classes: int, channels: int) -> int:
    """Multiply-accumulates of one example, in closed form, of the convolutions and the two dense layers.

    A block's convolution with an output of edge o costs o^2 k^2 b c; see :func:`parameters_of` for the letters.
    """
    edges = _edges(arguments)
    blocks = sum(
        out**2 * kernel**2 * before * width
        for (out, _), (kernel, before, width) in zip(edges, _layers(arguments, channels), strict=True)
    )
    flat = arguments.widths[-1] * edges[-1][1] ** 2
    return blocks + flat * arguments.dense + arguments.dense * classes


def smallest_of(arguments: Cnn5Arguments) -> int:
    """The smallest edge in pixels that leaves every block an output, going back from one pixel after the last."""
    edge = 1
    for kernel in reversed(arguments.kernels):
        edge = max(1, 2 * edge - _gain(arguments.padding, kernel))
    return edge


class Cnn5(nn.Module):
    """Float32 [B, channels, img_size, img_size] to logits [B, classes].

    Five times: convolution, activation, batch norm (if asked for), 2 x 2 maximum pooling. Then a dense layer with
    the activation and dropout, and the linear classifier.
    """

    def __init__(self, arguments: Cnn5Arguments, *, classes: int, channels: int) -> None:
        super().__init__()
        self.img_size = arguments.img_size
        activation = ACTIVATIONS[arguments.activation]
        self.features = nn.Sequential(
            *(
                nn.Sequential(
                    *_convolution(before, width, kernel, arguments.padding),
                    activation(),
                    *([nn.BatchNorm2d(width)] if arguments.batch_norm else []),
                    nn.MaxPool2d(2),
                )
                for kernel, before, width in _layers(arguments, channels)
            )
        )
        flat = arguments.widths[-1] * _edges(arguments)[-1][1] ** 2
        self.flatten = nn.Flatten()
        self.dense = nn.Sequential(
            OrderedDict(fc=nn.Linear(flat, arguments.dense), act=activation(), drop=nn.Dropout(arguments.dropout))
        )
        self.head = nn.Linear(arguments.dense, classes)

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Give the network a new classifier with random weights for `num_classes` labels."""
        self.head = nn.Linear(self.head.in_features, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [B, classes] of images [B, channels, img_size, img_size]."""
        maps = self.features(images)  # [B, C, E, E]
        logits: torch.Tensor = self.head(self.dense(self.flatten(maps)))
        return logits


def _convolution(before: int, width: int, kernel: int, padding: str | int) -> list[nn.Module]:
    if padding == "same" and kernel % 2 == 0:
        # torch's own padding="same" warns at every even kernel that it copies; it also pads more on the far side.
        near, far = (kernel - 1) // 2, kernel // 2
        return [nn.ZeroPad2d((near, far, near, far)), nn.Conv2d(before, width, kernel)]
    zeros = kernel // 2 if padding == "same" else 0 if padding == "valid" else padding
    return [nn.Conv2d(before, width, kernel, padding=zeros)]


def _layers(arguments: Cnn5Arguments, channels: int) -> Iterator[tuple[int, int, int]]:
    """Kernel, width before and width of each block."""
    widths = (channels, *arguments.widths)
    return ((k, *pair) for k, pair in zip(arguments.kernels, itertools.pairwise(widths), strict=True))


def _gain(padding: str | int, kernel: int) -> int:
    """By how many pixels a convolution enlarges the edge; negative where it shrinks it."""
    if padding == "same":
        return 0
    return 2 * (padding if isinstance(padding, int) else 0) - kernel + 1


def _edges(arguments: Cnn5Arguments) -> list[tuple[int, int]]:
    """The edge in pixels after each block's convolution and after its pooling."""
    edge, found = arguments.img_size, []
    for kernel in arguments.kernels:
        convolved = edge + _gain(arguments.padding, kernel)
        edge = convolved // 2
        found.append((convolved, edge))
    return found


def _check_whole(name: str, value: object, least: int, other: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"arguments.{name}: expected {other}a whole number of at least {least}, got {value!r}")


@register("cnn5")
def _cnn5(*, classes: int, channels: int, **arguments: object) -> nn.Module:
    kernel = arguments.get("kernel")
    known = arguments | {"kernel": tuple(kernel)} if isinstance(kernel, list) else arguments
    unknown = sorted(set(known) - set(Cnn5Arguments.__dataclass_fields__))
    if unknown:
        raise unknown_name("argument of cnn5", unknown[0], Cnn5Arguments.__dataclass_fields__)
    return Cnn5(Cnn5Arguments(**known), classes=classes, channels=channels)  # type: ignore[arg-type]
