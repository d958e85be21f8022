"""Augmentation of whole batches."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.base.errors import UsageError
from zoo.data.augment.pipeline import Augment, augment, strong, weak

IMAGES = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STRONG = Augment(area=(0.4, 1.2), aspect=1.5, rotate=20, shift=0.1, flip=True, erase=0.5)
COLOURS = Augment(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
CONFIGS = {
    "plain": Augment(),
    "flip": Augment(flip=True),
    "geometry": STRONG,
    "colours": COLOURS,
    "noise": Augment(noise=12),
    "erase": Augment(erase=0.7),
    "grey squares": Augment(erase=0.7, erase_fill="grey", erase_aspect=1),
    "randaugment": Augment(randaugment=3, flip=True),
    "strong": strong(Augment(flip=True, shift=0.125)),
    "all": dataclasses.replace(STRONG, randaugment=2, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1, noise=5),
}


def _augment(
    config: Augment, size: tuple[int, int] = (12, 12), seed: int = 0, images: torch.Tensor = IMAGES
) -> torch.Tensor:
    return augment(images, config, size, torch.Generator().manual_seed(seed))


def _flat(value: int, count: int = 40, size: int = 20, channels: int = 3) -> torch.Tensor:
    return torch.full((count, channels, size, size), value, dtype=torch.uint8)


def test_the_defaults_cut_out_the_centre():
    assert torch.equal(_augment(Augment()), IMAGES.float())
    assert torch.equal(_augment(Augment(), (8, 7)), IMAGES[..., 2:10, 2:9].float())


def test_a_map_that_moves_nothing_changes_nothing():
    torch.testing.assert_close(_augment(Augment(shift=1e-9)), IMAGES.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(12, 12), (7, 10)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_shape_type_and_range(config, size):
    before = IMAGES.clone()
    views = _augment(config, size)
    assert (views.shape, views.dtype) == ((6, 3, *size), torch.float32)
    assert views.min() >= 0
    assert views.max() <= 255
    assert torch.equal(IMAGES, before)


@pytest.mark.parametrize("config", [c for name, c in CONFIGS.items() if name != "plain"], ids=lambda c: "")
def test_the_generator_is_the_only_chance(config):
    torch.manual_seed(1)
    first = _augment(config)
    torch.manual_seed(2)
    assert torch.equal(_augment(config), first)
    assert not torch.equal(_augment(config, seed=1), first)


@pytest.mark.parametrize("size", [(12, 12), (7, 9)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_view_does_not_depend_on_how_the_batch_is_cut(config, size):
    whole = _augment(config, size)
    for cut in (1, 3, 5):
        parts = [
            augment(part, config, size, torch.Generator().manual_seed(0), total=6, offset=offset)
            for part, offset in ((IMAGES[:cut], 0), (IMAGES[cut:], cut))
        ]
        assert torch.equal(torch.cat(parts), whole)


@given(
    area=st.tuples(st.floats(0.05, 4), st.floats(0.05, 4)).map(sorted),
    aspect=st.floats(0.3, 3),
    colours=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5)),
    noise=st.floats(0, 100),
    erase=st.floats(0, 1),
    operations=st.integers(0, 4),
    magnitude=st.floats(0, 10),
    padding=st.sampled_from(["zeros", "border", "reflection"]),
    moved=st.booleans(),
    cut=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_any_config_keeps_the_range_and_can_be_cut(
    area, aspect, colours, noise, erase, operations, magnitude, padding, moved, cut, seed
):
    config = Augment(
        **({"area": tuple(area), "aspect": aspect, "rotate": 30, "shift": 0.2} if moved else {}),
        **dict(zip(("brightness", "contrast", "saturation", "hue"), colours, strict=True)),
        flip=True,
        noise=noise,
        erase=erase,
        randaugment=operations,
        magnitude=magnitude,
        vary_magnitude=seed % 2 == 0,
        padding=padding,
    )
    whole = _augment(config, (9, 11), seed)
    assert torch.isfinite(whole).all()
    assert whole.min() >= 0
    assert whole.max() <= 255
    parts = [
        augment(IMAGES[rows], config, (9, 11), torch.Generator().manual_seed(seed), total=6, offset=rows.start)
        for rows in (slice(0, cut), slice(cut, 6))
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_gpu_gives_the_same_views(config):
    views = _augment(config, images=IMAGES.cuda())
    assert views.is_cuda
    # Operations with thresholds may fall to the other side of them in a few pixels.
    close = (views.cpu() - _augment(config)).abs() < 0.1
    assert close.float().mean() > (0.97 if config.randaugment else 0.9999)


def test_parts_leave_the_generator_where_the_whole_does():
    after = []
    for images, offset in ((IMAGES, 0), (IMAGES[:2], 4)):
        generator = torch.Generator().manual_seed(0)
        augment(images, CONFIGS["all"], (12, 12), generator, total=6, offset=offset)
        after.append(torch.rand(1, generator=generator))
    assert torch.equal(*after)


@pytest.mark.parametrize(("total", "offset"), [(5, 0), (6, 1), (8, 3), (6, -1)])
def test_a_part_must_be_inside_the_whole(total, offset):
    with pytest.raises(ValueError, match=f"6 images from {offset} on are no part of a batch of {total}"):
        augment(IMAGES, Augment(), (12, 12), torch.Generator(), total=total, offset=offset)


@pytest.mark.parametrize("config", [Augment(flip=True), Augment(flip=True, shift=1e-9)], ids=["cut", "map"])
def test_flip_mirrors_about_every_second_picture_whole(config):
    images = IMAGES[:1].repeat(200, 1, 1, 1)
    views = _augment(config, images=images)
    plain = [torch.allclose(view, images[0].float(), atol=1e-3) for view in views]
    mirrored = [torch.allclose(view, images[0].float().flip(-1), atol=1e-3) for view in views]
    assert all(a != b for a, b in zip(plain, mirrored, strict=True))
    assert 70 < sum(mirrored) < 130


def test_a_smaller_area_stays_inside_the_picture():
    inside = _augment(Augment(area=(0.3, 0.6)), (16, 16), images=_flat(255, 50, 16, 1))
    # The outermost pixels may be interpolated with what lies outside.
    assert inside[:, :, 1:-1, 1:-1].min() == pytest.approx(255, abs=1e-2)


def test_area_and_aspect_are_what_a_ramp_says():
    # Columns that rise by 1 per pixel: their slope in the view is the width that was cut out, and so for the rows.
    ramp = torch.arange(60, 124, dtype=torch.uint8)
    images = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64, dtype=torch.uint8)])
    views = _augment(Augment(area=(0.25, 0.5), aspect=1.5), (32, 32), images=images.repeat(300, 1, 1, 1))
    middle = views[:, :, 8:24, 8:24]
    width = (middle[:, 0, 0, -1] - middle[:, 0, 0, 0]) / 15 * 32 / 64
    height = (middle[:, 1, -1, 0] - middle[:, 1, 0, 0]) / 15 * 32 / 64
    area, aspect = width * height, width / height
    assert 0.249 < area.min() < 0.26
    assert 0.49 < area.max() < 0.501
    assert 1 / 1.501 < aspect.min() < 0.69
    assert 1.45 < aspect.max() < 1.501
    assert aspect.log().mean() == pytest.approx(0, abs=0.05)


def test_shifts_reach_their_range_and_wrap_nothing_around():
    dot = torch.zeros(400, 1, 41, 41, dtype=torch.uint8)
    dot[:, :, 20, 20] = 255
    views = _augment(Augment(shift=0.2), (41, 41), images=dot)[:, 0]
    assert views.flatten(1).sum(1).tolist() == pytest.approx([255] * 400, rel=1e-2)
    places = torch.arange(41.0)
    for axis in (1, 2):
        centre = (views.sum(axis) @ places) / views.flatten(1).sum(1)
        assert 11.7 < centre.min() < 12.5
        assert 27.5 < centre.max() < 28.3
    half = torch.zeros(50, 1, 20, 20, dtype=torch.uint8)
    half[..., 10:] = 255
    assert _augment(Augment(shift=0.4), (20, 20), images=half)[..., :2].max() == 0


@pytest.mark.parametrize("canvas", [(40, 40), (40, 80)])
def test_rotation_keeps_lengths_also_where_the_picture_is_not_square(canvas):
    height, width = canvas
    bar = torch.zeros(100, 1, *canvas, dtype=torch.uint8)
    bar[:, :, height // 2 - 1 : height // 2 + 1, width // 2 - 15 : width // 2 + 15] = 255
    views = _augment(Augment(rotate=60), canvas, images=bar)[:, 0] / 255
    ys, xs = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2, indexing="ij"
    )
    mass = views.sum((1, 2))
    xx, yy, xy = ((views * a * b).sum((1, 2)) / mass for a, b in ((xs, xs), (ys, ys), (xs, ys)))
    assert (xx + yy).tolist() == pytest.approx([(30**2 - 1 + 2**2 - 1) / 12] * 100, rel=0.03)
    angles = torch.rad2deg(torch.atan2(2 * xy, xx - yy) / 2)
    assert 55 < angles.abs().max() < 61
    assert angles.min() < 0 < angles.max()


def test_what_lies_outside():
    config = Augment(area=(4.0, 4.0))
    white = _flat(255, 4, 16, 1)
    zoomed_out = _augment(config, (16, 16), images=white)
    assert zoomed_out[0, 0, 0, 0] == 0
    assert zoomed_out[0, 0, 8, 8] == 255
    for padding in ("border", "reflection"):
        filled = _augment(dataclasses.replace(config, padding=padding), (16, 16), images=white)
        assert filled.min() == pytest.approx(255, abs=1e-2)


def test_brightness_scales_and_nothing_else():
    views = _augment(Augment(brightness=0.5), images=IMAGES // 2)
    factors = views.sum((1, 2, 3)) / (IMAGES // 2).float().sum((1, 2, 3))
    torch.testing.assert_close(views, (IMAGES // 2) * factors[:, None, None, None])
    assert 0.5 <= factors.min() < factors.max() <= 1.5


def test_contrast_keeps_the_mean():
    narrow = IMAGES // 4 + 96
    views = _augment(Augment(contrast=0.5), images=narrow)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    before, after = ((images.float() * luma).sum(1).mean((1, 2)) for images in (narrow, views))
    torch.testing.assert_close(after, before, atol=0.5, rtol=0)
    factors = views.std((1, 2, 3)) / narrow.float().std((1, 2, 3))
    assert 0.5 <= factors.min() < factors.max() <= 1.5


@pytest.mark.parametrize("config", [Augment(saturation=1.0), Augment(hue=0.5)], ids=["saturation", "hue"])
def test_colours_change_and_greys_and_luma_stay(config):
    greys = IMAGES[:, :1].repeat(1, 3, 1, 1)
    torch.testing.assert_close(_augment(config, images=greys), greys.float(), atol=0.01, rtol=0)
    soft = IMAGES // 8 + 112
    views = _augment(config, images=soft)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close((views * luma).sum(1), (soft.float() * luma).sum(1), atol=0.02, rtol=0)
    assert (views - soft).abs().amax((1, 2, 3)).max() > 5


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_greyscale_pictures_have_no_colours_to_change(name):
    with pytest.raises(UsageError, match=rf"augment\.{name}: the images are greyscale and have no colours; set it"):
        _augment(Augment(**{name: 0.1}), images=IMAGES[:, :1])


def test_greyscale_pictures_get_everything_else():
    config = dataclasses.replace(CONFIGS["all"], saturation=0, hue=0, randaugment=4)
    views = _augment(config, images=IMAGES[:, :1])
    assert views.shape == (6, 1, 12, 12)


def test_noise_has_its_deviation_and_no_bias():
    views = _augment(Augment(noise=10), (20, 20), images=_flat(128))
    noise = views - 128
    assert noise.std().item() == pytest.approx(10, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.3)
    assert noise.flatten(1).std(1).min() > 8
    assert not torch.equal(noise[0], noise[1])


def _erased(config: Augment, size: tuple[int, int], count: int = 300) -> list[tuple[int, int, int, int]]:
    """Top, left, height and width of what is no longer black."""
    black = torch.zeros(count, 1, *size, dtype=torch.uint8)
    found = []
    for view in _augment(dataclasses.replace(config, erase_fill="grey"), size, images=black)[:, 0]:
        if (view > 0).any():
            rows, columns = (torch.nonzero((view > 0).any(axis)).flatten() for axis in (1, 0))
            box = (int(rows[0]), int(columns[0]), len(rows), len(columns))
            top, left, tall, wide = box
            assert (view[top : top + tall, left : left + wide] == 128).all()
            assert (view > 0).sum() == tall * wide
            found.append(box)
    return found


@pytest.mark.parametrize("size", [(64, 64), (40, 90)])
def test_erasing_follows_its_areas_and_aspects(size):
    boxes = _erased(Augment(erase=0.5, erase_area=(0.05, 0.3), erase_aspect=2), size)
    assert 120 < len(boxes) < 180
    shares = [tall * wide / (size[0] * size[1]) for _, _, tall, wide in boxes]
    aspects = [tall / wide for _, _, tall, wide in boxes]
    assert 0.04 < min(shares) < 0.07
    assert 0.28 < max(shares) < 0.32
    assert 0.45 < min(aspects) < 0.55
    assert (1.85 < max(aspects) < 2.2) or size[0] < size[1]
    for axis in (0, 1):
        assert min(box[axis] for box in boxes) <= 2
        assert max(box[axis] + box[axis + 2] for box in boxes) >= size[axis] - 2


@pytest.mark.parametrize(("probability", "count"), [(0.0, 0), (1.0, 50)])
def test_erasing_never_and_always(probability, count):
    assert len(_erased(Augment(erase=probability), (20, 20), 50)) == count


@given(
    low=st.floats(0.01, 1),
    high=st.floats(0.01, 1),
    aspect=st.floats(0.1, 20),
    height=st.integers(1, 30),
    width=st.integers(1, 30),
)
def test_what_is_erased_lies_inside_and_has_its_area(low, high, aspect, height, width):
    low, high = sorted((low, high))
    boxes = _erased(Augment(erase=1, erase_area=(low, high), erase_aspect=aspect), (height, width), 5)
    assert len(boxes) == 5
    for _, _, tall, wide in boxes:
        # Both edges are rounded to whole pixels.
        assert (tall - 0.51) * (wide - 0.51) <= high * height * width or 1 in (tall, wide)
        assert (tall + 0.51) * (wide + 0.51) >= low * height * width


def test_erasing_fills_with_random_values():
    views = _augment(Augment(erase=1, erase_area=(0.4, 0.4)), (40, 40), images=_flat(77, 20, 40))
    values = views[views != 77]
    assert 0.37 < len(values) / views.numel() < 0.41
    assert values.mean().item() == pytest.approx(127.5, abs=2)
    assert values.std().item() == pytest.approx(255 / math.sqrt(12), abs=2)
    assert values.unique().numel() == 255


def test_weak_is_the_geometry_alone():
    config = dataclasses.replace(CONFIGS["all"], mixup=0.2, cutmix=1, padding="border")
    assert weak(config) == Augment(area=(0.4, 1.2), aspect=1.5, rotate=20, shift=0.1, flip=True, padding="border")
    assert weak(weak(config)) == weak(config)


def test_strong_adds_randaugment_and_a_grey_square():
    config = Augment(flip=True, shift=0.125, brightness=0.1, mixup=0.2, cutmix=1)
    found = strong(config)
    assert (found.randaugment, found.magnitude, found.erase, found.mixup, found.cutmix) == (2, 10, 1, 0, 0)
    assert (found.flip, found.shift, found.brightness) == (True, 0.125, 0.1)
    assert strong(found) == found
    assert config == Augment(flip=True, shift=0.125, brightness=0.1, mixup=0.2, cutmix=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"area": (0.0, 1.0)}, r"augment\.area: expected positive shares, smallest first, got \(0\.0, 1\.0\)"),
        ({"area": (1.0, 0.5)}, r"augment\.area"),
        ({"aspect": 0.0}, r"augment\.aspect: expected a positive factor, got 0"),
        ({"rotate": -1}, r"augment\.rotate: expected degrees from 0 to 180, got -1"),
        ({"shift": 1.5}, r"augment\.shift: expected a share of the edge from 0 to 1, got 1\.5"),
        ({"padding": "zero"}, r"augment\.padding: expected zeros, border or reflection, got 'zero'"),
        ({"brightness": 1.5}, r"augment\.brightness: expected a strength from 0 to 1, got 1\.5"),
        ({"contrast": math.nan}, r"augment\.contrast: expected a strength from 0 to 1, got nan"),
        ({"saturation": -0.1}, r"augment\.saturation: expected a strength from 0 to 1, got -0\.1"),
        ({"hue": 0.6}, r"augment\.hue: expected a share of the colour circle from 0 to 0\.5, got 0\.6"),
        ({"noise": -1}, r"augment\.noise: expected a standard deviation from 0 to 255, got -1"),
        ({"randaugment": -1}, r"augment\.randaugment: expected a number of operations from 0 to 16, got -1"),
        ({"magnitude": 11}, r"augment\.magnitude: expected a magnitude from 0 to 10, got 11"),
        ({"erase": 1.5}, r"augment\.erase: expected a probability, got 1\.5"),
        ({"erase_area": (0.5, 0.2)}, r"augment\.erase_area: expected positive shares, smallest first"),
        ({"erase_area": (0.5, 1.2)}, r"augment\.erase_area: expected shares of the input, at most 1"),
        ({"erase_aspect": -1}, r"augment\.erase_aspect: expected a positive factor, got -1"),
        ({"erase_fill": "black"}, r"augment\.erase_fill: expected random or grey, got 'black'"),
        ({"mixup": -0.2}, r"augment\.mixup: expected alpha, or 0 for none, got -0\.2"),
        ({"cutmix": math.inf}, r"augment\.cutmix: expected alpha, or 0 for none, got inf"),
        ({"mix_probability": 2}, r"augment\.mix_probability: expected a probability, got 2"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Augment(**changes)
