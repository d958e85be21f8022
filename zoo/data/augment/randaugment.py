"""RandAugment (Cubuk et al. 2020): a few operations per image, drawn from fourteen, all of one magnitude.

`T` is the size of the whole batch, `B` that of the part at hand, `N` the operations per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from zoo.data.augment.colour import adjust_colours

__all__ = ["OPERATIONS", "apply_operations", "draw_operations", "operation_maps"]

# The operations of the paper's section 3, with the ranges of AutoAugment (Cubuk et al. 2019, table 6).
_MAX_DEGREES = 30.0
_MAX_SHEAR = 0.3
_MAX_SHIFT = 150 / 331
"""Share of the edge; the table gives 150 pixels of 331."""
_MAX_ENHANCE = 0.9
"""Factors lie between 0.1 and 1.9."""
_MAX_LOST_BITS = 4

_GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def _autocontrast(images: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    stretched = (images - low) * (255 / (high - low).clamp(min=1e-6))
    return torch.where(high > low, stretched, images).clamp_(0, 255)


def _equalize(images: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    from torchvision.transforms.v2.functional import equalize

    equal: torch.Tensor = equalize(images.round().to(torch.uint8))
    return equal.float()


def _solarize(images: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    thresholds = (256 * (1 - amounts.abs())).to(images.device)[:, None, None, None]
    return torch.where(images >= thresholds, 255 - images, images)


def _posterize(images: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    steps = (2 ** (amounts.abs() * _MAX_LOST_BITS).round()).to(images.device)[:, None, None, None]
    return (images / steps).floor() * steps


def _sharpness(images: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    if min(images.shape[-2:]) < 3:
        return images
    rows = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
    inside = images[..., 1:-1, 1:-1]
    # Pillow's ImageFilter.SMOOTH: ones around a five, over 13; the outermost pixels stay.
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inside) / 13
    sharp = images.clone()
    sharp[..., 1:-1, 1:-1] = smooth + (inside - smooth) * _factors(amounts).to(images.device)[:, None, None, None]
    return sharp.clamp_(0, 255)


def _factors(amounts: torch.Tensor) -> torch.Tensor:
    return 1 + _MAX_ENHANCE * amounts


_PHOTOMETRIC: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "autocontrast": _autocontrast,
    "brightness": lambda images, amounts: adjust_colours(images, brightness=_factors(amounts)),
    "contrast": lambda images, amounts: adjust_colours(images, contrast=_factors(amounts)),
    "equalize": _equalize,
    "posterize": _posterize,
    "saturation": lambda images, amounts: adjust_colours(images, saturation=_factors(amounts)),
    "sharpness": _sharpness,
    "solarize": _solarize,
}

OPERATIONS = ("identity", *_GEOMETRIC, *_PHOTOMETRIC)
"""Names, in the order of the numbers that :func:`draw_operations` returns; the paper calls saturation `color`."""


def draw_operations(
    total: int, count: int, magnitude: float, *, vary: bool, greyscale: bool, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw each image's operations, uniformly and with replacement.

    Args:
        total: images T.
        count: operations per image N.
        magnitude: 0 to 10.
        vary: every operation draws its own magnitude between 0 and `magnitude`.
        greyscale: without `saturation`, which would be a second `identity`.
        generator: on the CPU.

    Returns:
        Indices into OPERATIONS, int64 [T, N], and amounts of either sign, float32 [T, N], at most magnitude / 10.
    """
    known = torch.tensor([i for i, name in enumerate(OPERATIONS) if not (greyscale and name == "saturation")])
    operations = known[torch.randint(len(known), (total, count), generator=generator)]
    amounts = torch.where(torch.rand(total, count, generator=generator) < 0.5, -magnitude / 10, magnitude / 10)
    return operations, amounts * torch.rand(total, count, generator=generator) if vary else amounts


def operation_maps(operations: torch.Tensor, amounts: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The geometric operations of every image as one map from output to input coordinates, both in -1..1.

    Args:
        operations: int64 [T, N].
        amounts: float32 [T, N].
        size: height and width of the view in pixels.

    Returns:
        float32 [T, 3, 3]; the identity for images without geometric operations.
    """
    ratio = size[0] / size[1]
    maps = torch.eye(3).repeat(len(operations), 1, 1)
    for codes, strengths in zip(operations.unbind(1), amounts.unbind(1), strict=True):

        def of(name: str, codes: torch.Tensor = codes, strengths: torch.Tensor = strengths) -> torch.Tensor:
            return torch.where(codes == OPERATIONS.index(name), strengths, 0.0)

        angle = of("rotate") * math.radians(_MAX_DEGREES)
        step = torch.eye(3).repeat(len(operations), 1, 1)
        step[:, 0, 0] = step[:, 1, 1] = angle.cos()
        # Coordinates run from -1 to 1 along both edges, so pixels are square only where the edges are equal.
        step[:, 0, 1] = (of("shear_x") * _MAX_SHEAR - angle.sin()) * ratio
        step[:, 1, 0] = (of("shear_y") * _MAX_SHEAR + angle.sin()) / ratio
        step[:, 0, 2] = of("translate_x") * 2 * _MAX_SHIFT
        step[:, 1, 2] = of("translate_y") * 2 * _MAX_SHIFT
        maps = maps @ step
    return maps


def apply_operations(images: torch.Tensor, operations: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """Apply the operations on colours, in their order, each to all images that have it at once.

    Args:
        images: float32 [B, C, h, w] in 0..255; changed in place.
        operations: int64 [B, N]; those on the geometry are passed over.
        amounts: float32 [B, N].

    Returns:
        `images`, still in 0..255.
    """
    for codes, strengths in zip(operations.unbind(1), amounts.unbind(1), strict=True):
        for name, function in _PHOTOMETRIC.items():
            rows = torch.nonzero(codes == OPERATIONS.index(name)).flatten()
            if len(rows):
                there = rows.to(images.device)
                images[there] = function(images[there], strengths[rows])
    return images
