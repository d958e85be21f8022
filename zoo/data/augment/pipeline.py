"""Augmentation of a whole batch at once: one random affine map per image, then colours, noise and erasing.

`B` is the size of the batch at hand, `T` that of the whole batch it is a part of, `C` the channels, `H`, `W` the size
of the stored images, `h`, `w` that of the input.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from zoo.base.errors import UsageError
from zoo.data.augment.colour import adjust_colours
from zoo.data.augment.randaugment import apply_operations, draw_operations, operation_maps

__all__ = ["Augment", "augment", "strong", "weak"]

_PADDINGS = ("zeros", "border", "reflection")
_FILLS = ("random", "grey")
_STRENGTHS = (
    ("rotate", 180, "degrees"),
    ("shift", 1, "a share of the edge"),
    ("brightness", 1, "a strength"),
    ("contrast", 1, "a strength"),
    ("saturation", 1, "a strength"),
    ("hue", 0.5, "a share of the colour circle"),
    ("noise", 255, "a standard deviation"),
    ("randaugment", 16, "a number of operations"),
    ("magnitude", 10, "a magnitude"),
)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How training images are varied. The defaults cut out the centre, as evaluation does."""

    area: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest share of the image's area that fills the input; above 1 zooms out. With `aspect`, this is
    Inception's random resized crop. Once `area`, `aspect`, `rotate` or `shift` is set, 1 means the image with the
    margin that evaluation cuts off."""
    aspect: float = 1.0
    """Width is stretched against height by a factor between 1/aspect and aspect."""
    rotate: float = 0.0
    """Largest rotation, in degrees, either way."""
    shift: float = 0.0
    """Largest shift, as a share of the edge, either way; on top of the free choice of where a smaller area lies."""
    flip: bool = False
    """Mirror every second image, left to right."""
    padding: str = "zeros"
    """What lies outside the image: `zeros`, `border` or `reflection`."""
    brightness: float = 0.0
    """Largest change of the factor of every value: 0.2 draws factors from 0.8 to 1.2."""
    contrast: float = 0.0
    """Largest change of the factor of the distance from the image's mean grey."""
    saturation: float = 0.0
    """Largest change of the factor of the distance from the pixel's grey; an error for greyscale images."""
    hue: float = 0.0
    """Largest turn of the colour circle, either way, as a share of it, at most 0.5; an error for greyscale images."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, in steps of 0..255, drawn for every value of every image."""
    randaugment: int = 0
    """Random operations per image (Cubuk et al. 2020, RandAugment); 0: none. The paper's N."""
    magnitude: float = 9.0
    """Strength of RandAugment's operations, 0 to 10. The paper's M."""
    vary_magnitude: bool = False
    """Every operation draws its own strength up to `magnitude` (as Sohn et al. 2020, FixMatch, section 2.3)."""
    erase: float = 0.0
    """Probability of erasing a rectangle of an image (Zhong et al. 2017, Random Erasing); the paper's is 0.5."""
    erase_area: tuple[float, float] = (0.02, 0.4)
    """Smallest and largest share of the input that is erased."""
    erase_aspect: float = 10 / 3
    """The rectangle's height against its width is between 1/erase_aspect and erase_aspect."""
    erase_fill: str = "random"
    """What the rectangle is filled with: `random` values, or `grey` (128)."""
    mixup: float = 0.0
    """Parameter alpha of MixUp (Zhang et al. 2018); 0: off. See zoo.data.augment.mix."""
    cutmix: float = 0.0
    """Parameter alpha of CutMix (Yun et al. 2019); 0: off. Where both are on, each batch draws one of them."""
    mix_probability: float = 1.0
    """Share of the batches that are mixed."""

    @property
    def plain(self) -> bool:
        """Whether an image always looks the same."""
        changing = ("area", "aspect", "rotate", "shift", "flip", "noise", "randaugment", "erase", "mixup", "cutmix")
        colours = ("brightness", "contrast", "saturation", "hue")
        return all(getattr(self, name) == getattr(_PLAIN, name) for name in changing + colours)

    def __post_init__(self) -> None:
        for name in ("area", "erase_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise UsageError(f"augment.{name}: expected positive shares, smallest first, got {(low, high)}")
        if self.erase_area[1] > 1:
            raise UsageError(f"augment.erase_area: expected shares of the input, at most 1, got {self.erase_area}")
        for name in ("aspect", "erase_aspect"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"augment.{name}: expected a positive factor, got {getattr(self, name)}")
        for name, known in (("padding", _PADDINGS), ("erase_fill", _FILLS)):
            if getattr(self, name) not in known:
                expected = ", ".join(known[:-1]) + f" or {known[-1]}"
                raise UsageError(f"augment.{name}: expected {expected}, got {getattr(self, name)!r}")
        for name in ("erase", "mix_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"augment.{name}: expected a probability, got {getattr(self, name)}")
        for name, most, unit in _STRENGTHS:
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"augment.{name}: expected {unit} from 0 to {most:g}, got {getattr(self, name)}")
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"augment.{name}: expected alpha, or 0 for none, got {getattr(self, name)}")


_PLAIN = Augment()


def weak(config: Augment) -> Augment:
    """The geometry of `config` alone: the view that FixMatch takes its labels from (Sohn et al. 2020, section 2.3)."""
    geometry = ("area", "aspect", "rotate", "shift", "flip", "padding")
    return Augment(**{name: getattr(config, name) for name in geometry})


def strong(config: Augment) -> Augment:
    """The view that FixMatch trains on: `config` unmixed, with RandAugment and a grey square (Cutout) on top.

    Two operations of magnitudes up to 10, and a square of at most half the edge, as Sohn et al. 2020, section 2.3.
    """
    return dataclasses.replace(
        config,
        randaugment=2,
        magnitude=10.0,
        vary_magnitude=True,
        erase=1.0,
        erase_area=(0.01, 0.25),
        erase_aspect=1.0,
        erase_fill="grey",
        mixup=0.0,
        cutmix=0.0,
    )


def augment(
    images: torch.Tensor,
    config: Augment,
    size: tuple[int, int],
    generator: torch.Generator,
    *,
    total: int | None = None,
    offset: int = 0,
) -> torch.Tensor:
    """Cut a varied view out of every image.

    Everything is drawn for a batch of `total` images of which these are a part, so an image's view does not depend on
    how the batch was shared out.

    Args:
        images: uint8 [B, C, H, W], on any device.
        config: the ranges. MixUp and CutMix are not done here; see zoo.data.augment.mix.
        size: height h and width w of the result.
        generator: the only source of randomness; on the CPU, whatever device the images are on.
        total: images T in the whole batch; default: B.
        offset: place of the first of `images` in the whole batch.

    Returns:
        float32 [B, C, h, w], still in 0..255.

    Raises:
        UsageError: saturation or hue is asked of greyscale images.
        ValueError: the part lies outside of the whole batch.
    """
    total = len(images) if total is None else total
    if not 0 <= offset <= total - len(images):
        raise ValueError(f"{len(images)} images from {offset} on are no part of a batch of {total}")
    part = slice(offset, offset + len(images))
    _check_colours(config, channels=images.shape[1])
    moved = config.area != (1.0, 1.0) or config.aspect != 1 or config.rotate != 0 or config.shift != 0
    maps = _crops(total, config, (images.shape[-2], images.shape[-1]), generator) if moved else None
    mirrored = torch.rand(total, generator=generator) < 0.5 if config.flip and not moved else None
    operations = amounts = None
    if config.randaugment:
        operations, amounts = draw_operations(
            total,
            config.randaugment,
            config.magnitude,
            vary=config.vary_magnitude,
            greyscale=images.shape[1] == 1,
            generator=generator,
        )
        base = maps if maps is not None else _centre((images.shape[-2], images.shape[-1]), size)
        maps = base @ operation_maps(operations, amounts, size)
    views = _cut_centre(images, size) if maps is None else _sample(images, maps[part], size, config.padding)
    if mirrored is not None:
        rows = torch.nonzero(mirrored[part]).flatten().to(images.device)
        views[rows] = views[rows].flip(-1)
    if operations is not None and amounts is not None:
        views = apply_operations(views, operations[part], amounts[part])
    if changes := _draw_colours(total, config, generator):
        views = adjust_colours(views, **{name: values[part] for name, values in changes.items()})
    if config.noise:
        _add_noise(views, config.noise, _draw_seeds(total, generator)[part])
    if config.erase:
        _erase(views, config, *(draw[part] for draw in _draw_rectangles(total, config, size, generator)))
    return views


def _check_colours(config: Augment, *, channels: int) -> None:
    for name in ("saturation", "hue"):
        if getattr(config, name) and channels == 1:
            raise UsageError(f"augment.{name}: the images are greyscale and have no colours; set it to 0")


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _crops(count: int, config: Augment, size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """One map per image from output to input coordinates, both in -1..1: float32 [T, 3, 3]."""

    def uniform(low: float, high: float) -> torch.Tensor:
        return _uniform(count, low, high, generator)

    area, stretch = uniform(*config.area), uniform(-1, 1) * math.log(config.aspect) / 2
    width, height = area.sqrt() * stretch.exp(), area.sqrt() * (-stretch).exp()
    angle = uniform(-1, 1) * math.radians(config.rotate)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if config.flip else torch.ones(count)
    # A smaller area may lie anywhere inside the image; the shift moves it further.
    across = uniform(-1, 1) * (1 - width).clamp(min=0) + uniform(-2, 2) * config.shift
    down = uniform(-1, 1) * (1 - height).clamp(min=0) + uniform(-2, 2) * config.shift
    # Coordinates run from -1 to 1 along both edges, so pixels are square only where the edges are equal.
    ratio = size[0] / size[1]
    none, one = torch.zeros(count), torch.ones(count)
    rows = [
        torch.stack([angle.cos() * width * mirror, -angle.sin() * height * ratio, across], dim=1),
        torch.stack([angle.sin() * width * mirror / ratio, angle.cos() * height, down], dim=1),
        torch.stack([none, none, one], dim=1),
    ]
    return torch.stack(rows, dim=1)


def _cut_centre(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    top, left = (images.shape[-2] - size[0]) // 2, (images.shape[-1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]].float()


def _centre(canvas: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """The centre cut as a map: float32 [1, 3, 3]."""
    scales = [edge / whole for edge, whole in zip(size, canvas, strict=True)]
    starts = [(whole - edge) // 2 for edge, whole in zip(size, canvas, strict=True)]
    shifts = [(2 * start + edge) / whole - 1 for start, edge, whole in zip(starts, size, canvas, strict=True)]
    return torch.tensor([[[scales[1], 0, shifts[1]], [0, scales[0], shifts[0]], [0, 0, 1]]])


def _sample(images: torch.Tensor, maps: torch.Tensor, size: tuple[int, int], padding: str) -> torch.Tensor:
    maps = maps.to(images.device)
    height, width = size
    xs = (2 * torch.arange(width, device=images.device) + 1) / width - 1
    ys = (2 * torch.arange(height, device=images.device) + 1) / height - 1
    # Sums over broadcast rows and columns: several times faster than affine_grid's product of matrices.
    grid = torch.empty(len(images), height, width, 2, device=images.device)
    for axis in (0, 1):
        along = (maps[:, axis, 0, None] * xs)[:, None, :]
        across = (maps[:, axis, 1, None] * ys + maps[:, axis, 2, None])[:, :, None]
        torch.add(along, across, out=grid[..., axis])
    views = functional.grid_sample(images.float(), grid, mode="bilinear", padding_mode=padding, align_corners=False)
    return views.clamp_(0, 255)


def _draw_colours(count: int, config: Augment, generator: torch.Generator) -> dict[str, torch.Tensor]:
    drawn = {
        name: 1 + _uniform(count, -strength, strength, generator)
        for name in ("brightness", "contrast", "saturation")
        if (strength := getattr(config, name))
    }
    return drawn | ({"hue": _uniform(count, -config.hue, config.hue, generator)} if config.hue else {})


def _draw_seeds(count: int, generator: torch.Generator) -> torch.Tensor:
    """One seed per image, so that what takes many draws is drawn only for the part at hand: int64 [T]."""
    return torch.randint(2**62, (count,), generator=generator)


def _add_noise(views: torch.Tensor, deviation: float, seeds: torch.Tensor) -> None:
    generator = torch.Generator()
    for view, seed in zip(views, seeds.tolist(), strict=True):
        noise = torch.randn(view.shape, generator=generator.manual_seed(seed))
        view.add_(noise.to(view.device), alpha=deviation).clamp_(0, 255)


def _draw_rectangles(
    count: int, config: Augment, size: tuple[int, int], generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Which images lose a rectangle, bool [T]; its top, left, height and width, int64 [T, 4]; a seed, int64 [T].

    The paper draws again until the rectangle fits; here the aspects are limited to those that fit. They are uniform in
    their logarithm, so that wide is as likely as tall.
    """
    height, width = size
    chosen = _uniform(count, 0, 1, generator) < config.erase
    share = _uniform(count, *config.erase_area, generator)
    widest, tallest = share * height / width, height / (share * width)
    most = max(config.erase_aspect, 1 / config.erase_aspect)
    low = torch.tensor(1 / most).clamp(widest, tallest).log()
    high = torch.tensor(most).clamp(widest, tallest).log()
    aspect = (low + _uniform(count, 0, 1, generator) * (high - low)).exp()
    tall = (share * height * width * aspect).sqrt().round().clamp(1, height)
    wide = (share * height * width / aspect).sqrt().round().clamp(1, width)
    top = (_uniform(count, 0, 1, generator) * (height - tall + 1)).floor().clamp(max=height - tall)
    left = (_uniform(count, 0, 1, generator) * (width - wide + 1)).floor().clamp(max=width - wide)
    return chosen, torch.stack([top, left, tall, wide], dim=1).long(), _draw_seeds(count, generator)


def _erase(
    views: torch.Tensor, config: Augment, chosen: torch.Tensor, boxes: torch.Tensor, seeds: torch.Tensor
) -> None:
    generator = torch.Generator()
    for row in torch.nonzero(chosen).flatten().tolist():
        top, left, tall, wide = boxes[row].tolist()
        if config.erase_fill == "grey":
            views[row, :, top : top + tall, left : left + wide] = 128
        else:
            generator.manual_seed(int(seeds[row]))
            fill = torch.randint(256, (views.shape[1], tall, wide), generator=generator)
            views[row, :, top : top + tall, left : left + wide] = fill.to(views)
