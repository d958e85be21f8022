"""Augmentation of a whole batch at once: one random affine map per image, and random erasing.

`B` is the batch size, `C` the channels, `H`, `W` the size of the stored pictures, `h`, `w` that of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from zoo.errors import UsageError

__all__ = ["Augment", "augment"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training pictures are varied. The defaults cut out the centre, as evaluation does."""

    area: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest share of the picture's area that fills the input; above 1 zooms out."""
    aspect: float = 1.0
    """Width is stretched against height by a factor between 1/aspect and aspect."""
    rotate: float = 0.0
    """Largest rotation, in degrees, either way."""
    shift: float = 0.0
    """Largest shift, as a share of the edge, either way; on top of the free choice of where a smaller area lies."""
    flip: bool = False
    """Mirror every second picture, left to right."""
    padding: str = "zeros"
    """What lies outside the picture: `zeros`, `border` or `reflection`."""
    erase: float = 0.0
    """Probability of blanking a rectangle of a tenth of the input (after Zhong et al. 2017, Random Erasing)."""

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] < math.inf:
            raise UsageError(f"augment.area: expected positive shares, smallest first, got {self.area}")
        if not 0 < self.aspect < math.inf:
            raise UsageError(f"augment.aspect: expected a positive factor, got {self.aspect}")
        if self.padding not in ("zeros", "border", "reflection"):
            raise UsageError(f"augment.padding: expected zeros, border or reflection, got {self.padding!r}")
        if not 0 <= self.erase <= 1:
            raise UsageError(f"augment.erase: expected a probability, got {self.erase}")


def augment(images: torch.Tensor, config: Augment, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Cut a varied view out of every image.

    Args:
        images: uint8 [B, C, H, W].
        config: the ranges.
        size: height h and width w of the result.
        generator: the only source of randomness; on the CPU.

    Returns:
        float32 [B, C, h, w], still in 0..255.
    """
    pixels = images.float()
    if config == Augment():
        top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
        return pixels[..., top : top + size[0], left : left + size[1]]
    maps = _affine(len(images), config, generator).to(images.device)
    grid = functional.affine_grid(maps, [len(images), images.shape[1], *size], align_corners=False)
    views = functional.grid_sample(pixels, grid, mode="bilinear", padding_mode=config.padding, align_corners=False)
    return _erase(views, config.erase, generator) if config.erase else views


def _affine(count: int, config: Augment, generator: torch.Generator) -> torch.Tensor:
    """One map per image from output to input coordinates, both in -1..1: float32 [B, 2, 3]."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    area, stretch = uniform(*config.area), uniform(-1, 1) * math.log(config.aspect) / 2
    width, height = area.sqrt() * stretch.exp(), area.sqrt() * (-stretch).exp()
    angle = uniform(-1, 1) * math.radians(config.rotate)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if config.flip else torch.ones(count)
    # A smaller area may lie anywhere inside the picture; the shift moves it further.
    across = uniform(-1, 1) * (1 - width).clamp(min=0) + uniform(-2, 2) * config.shift
    down = uniform(-1, 1) * (1 - height).clamp(min=0) + uniform(-2, 2) * config.shift
    rows = [
        torch.stack([angle.cos() * width * mirror, -angle.sin() * height, across], dim=1),
        torch.stack([angle.sin() * width * mirror, angle.cos() * height, down], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _erase(images: torch.Tensor, probability: float, generator: torch.Generator) -> torch.Tensor:
    count, _, height, width = images.shape
    chosen = torch.rand(count, generator=generator) < probability
    tall, wide = round(height * math.sqrt(0.1)), round(width * math.sqrt(0.1))
    tops = torch.randint(0, height - tall + 1, (count,), generator=generator)
    lefts = torch.randint(0, width - wide + 1, (count,), generator=generator)
    for index in torch.nonzero(chosen).flatten().tolist():
        images[index, :, tops[index] : tops[index] + tall, lefts[index] : lefts[index] + wide] = 0
    return images
