"""Brightness, contrast, saturation and hue of a whole batch: one linear map of the colours per image.

`B` is the batch size, `C` the channels (1 or 3), `h`, `w` the size of the images. Strengths are one number per image.
"""

from __future__ import annotations

import math

import torch

__all__ = ["adjust_colours"]

# NTSC's YIQ: luma, and two axes of colour that span a plane around the greys. Luma is also what Pillow calls grey.
_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], dtype=torch.float64)
_LUMA: torch.Tensor = _YIQ[0].float()
_GREY = _LUMA.expand(3, 3).clone()
_CHROMA = torch.eye(3) - _GREY
_QUARTER_TURN = (
    torch.linalg.inv(_YIQ) @ torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64) @ _YIQ
).float()


def adjust_colours(
    images: torch.Tensor,
    *,
    brightness: torch.Tensor | None = None,
    contrast: torch.Tensor | None = None,
    saturation: torch.Tensor | None = None,
    hue: torch.Tensor | None = None,
) -> torch.Tensor:
    """Brightness, contrast, saturation and hue, in this order, as Pillow's ImageEnhance defines the first three.

    The four are one linear map, so values are cut off at 0 and 255 once, at the end, where Pillow would after each.
    Hue turns the colours around the greys in YIQ and keeps their luma; in HSV it would keep their lightness instead.

    Args:
        images: float32 [B, C, h, w] in 0..255.
        brightness: float32 [B] on the CPU: factor of every value.
        contrast: float32 [B]: factor of the distance from the image's mean grey.
        saturation: float32 [B]: factor of the distance from the pixel's grey; only for C = 3.
        hue: float32 [B]: turn of the colour circle, 1 is all of it, from red towards yellow; only for C = 3.

    Returns:
        float32 [B, C, h, w] in 0..255; a new tensor.
    """
    factor = torch.ones(len(images)) if brightness is None else brightness
    offset = torch.zeros(len(images))
    if contrast is not None:
        # Whole numbers, as in Pillow: which also makes the mean independent of the order in which it was summed.
        offset = (1 - contrast) * (_mean_grey(images) * factor).round()
        factor = factor * contrast
    if saturation is None and hue is None:
        return (images * _spread(factor, images)).add_(_spread(offset, images)).clamp_(0, 255)
    matrices = (factor[:, None, None] * _colour_matrices(len(images), saturation, hue)).to(images.device)  # [B, 3, 3]
    mixed = images[:, :1] * matrices[:, :, 0, None, None]
    for channel in (1, 2):
        mixed += images[:, channel : channel + 1] * matrices[:, :, channel, None, None]
    return mixed.add_(_spread(offset, images)).clamp_(0, 255)


def _colour_matrices(count: int, saturation: torch.Tensor | None, hue: torch.Tensor | None) -> torch.Tensor:
    """What scales and turns the colours and leaves the greys: float32 [B, 3, 3]."""
    scale = (torch.ones(count) if saturation is None else saturation)[:, None, None]
    angle = (torch.zeros(count) if hue is None else hue * 2 * math.pi)[:, None, None]
    matrices: torch.Tensor = _GREY + scale * (angle.cos() * _CHROMA + angle.sin() * _QUARTER_TURN)
    return matrices


def _mean_grey(images: torch.Tensor) -> torch.Tensor:
    means = images.mean(dim=(2, 3)).cpu()  # [B, C]
    return (means * _LUMA).sum(dim=1) if images.shape[1] == 3 else means[:, 0]


def _spread(values: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return values.to(images.device)[:, None, None, None]
