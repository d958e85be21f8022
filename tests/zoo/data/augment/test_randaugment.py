"""RandAugment: the draws, and every operation against Pillow."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from tests.zoo.factories import picture
from zoo.data.augment.pipeline import Augment, augment
from zoo.data.augment.randaugment import OPERATIONS, apply_operations, draw_operations, operation_maps

ARRAY = np.clip(picture(3, 24, 24).astype(int) // 2 + np.arange(24)[:, None, None] * 4 + 20, 0, 255).astype(np.uint8)
PICTURE = Image.fromarray(ARRAY)


def _one(name: str, amount: float, images: torch.Tensor | None = None) -> torch.Tensor:
    given = torch.from_numpy(ARRAY).permute(2, 0, 1)[None].float() if images is None else images
    operations = torch.full((len(given), 1), OPERATIONS.index(name))
    return apply_operations(given.clone(), operations, torch.full((len(given), 1), amount))


def _as_array(views: torch.Tensor) -> np.ndarray:
    return views[0].permute(1, 2, 0).numpy()


def test_there_are_the_papers_fourteen_operations():
    assert len(OPERATIONS) == len(set(OPERATIONS)) == 14


def test_operations_are_uniform_and_amounts_have_both_signs():
    generator = torch.Generator().manual_seed(0)
    operations, amounts = draw_operations(7000, 2, 6.0, vary=False, greyscale=False, generator=generator)
    counts = Counter(operations.flatten().tolist())
    assert sorted(counts) == list(range(14))
    assert 880 < min(counts.values()) <= max(counts.values()) < 1120
    assert amounts.shape == (7000, 2)
    assert amounts.unique().tolist() == pytest.approx([-0.6, 0.6])
    assert (amounts > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_magnitudes_vary_up_to_the_given_one():
    generator = torch.Generator().manual_seed(0)
    _, amounts = draw_operations(2000, 2, 8.0, vary=True, greyscale=False, generator=generator)
    assert 0.79 < amounts.abs().max() <= 0.8
    assert amounts.abs().mean().item() == pytest.approx(0.4, abs=0.02)


def test_greyscale_has_no_saturation():
    operations, _ = draw_operations(
        2000, 2, 8.0, vary=False, greyscale=True, generator=torch.Generator().manual_seed(0)
    )
    assert sorted(set(range(14)) - set(operations.flatten().tolist())) == [OPERATIONS.index("saturation")]


@pytest.mark.parametrize("amount", [-1.0, -0.5, 0.3, 1.0])
@pytest.mark.parametrize(
    ("name", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_enhancers_are_pillows(name, enhancer, amount):
    expected = np.asarray(enhancer(PICTURE).enhance(1 + 0.9 * amount), dtype=float)
    # Pillow rounds on the way: to whole greys, and off to whole results.
    np.testing.assert_allclose(_as_array(_one(name, amount)), expected, atol=2)


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    [
        ("autocontrast", 0.9, ImageOps.autocontrast(PICTURE)),
        ("equalize", 0.9, ImageOps.equalize(PICTURE)),
        ("solarize", 0.5, ImageOps.solarize(PICTURE, 128)),
        ("solarize", -1.0, ImageOps.invert(PICTURE)),
        ("solarize", 0.0, PICTURE),
        ("posterize", -0.5, ImageOps.posterize(PICTURE, 6)),
        ("posterize", 1.0, ImageOps.posterize(PICTURE, 4)),
        ("posterize", 0.0, PICTURE),
        ("identity", 1.0, PICTURE),
        ("rotate", 1.0, PICTURE),
    ],
)
def test_other_operations_on_colours_are_pillows(name, amount, expected):
    np.testing.assert_allclose(_as_array(_one(name, amount)), np.asarray(expected, dtype=float), atol=1)


def test_a_flat_picture_survives():
    flat = torch.full((1, 3, 8, 8), 90.0)
    for name in ("autocontrast", "equalize", "contrast", "sharpness"):
        torch.testing.assert_close(_one(name, 0.9, flat), flat, atol=0.6, rtol=0)


def test_pictures_too_small_to_sharpen_stay():
    tiny = torch.tensor([[[[10.0, 200.0]]]])
    assert torch.equal(_one("sharpness", 1.0, tiny), tiny)


def test_each_picture_gets_its_own_operations_in_order():
    images = torch.from_numpy(ARRAY).permute(2, 0, 1)[None].float().repeat(3, 1, 1, 1)
    solarize, posterize, identity = (OPERATIONS.index(name) for name in ("solarize", "posterize", "identity"))
    operations = torch.tensor([[solarize, posterize], [posterize, solarize], [identity, identity]])
    views = apply_operations(images.clone(), operations, torch.full((3, 2), 0.5))
    both = (
        ImageOps.posterize(ImageOps.solarize(PICTURE, 128), 6),
        ImageOps.solarize(ImageOps.posterize(PICTURE, 6), 128),
    )
    for view, expected in zip(views, (*both, PICTURE), strict=True):
        np.testing.assert_array_equal(view.permute(1, 2, 0).numpy(), np.asarray(expected, dtype=float))


@pytest.mark.parametrize(
    ("name", "amount", "expected"),
    [
        ("identity", 1.0, [[1, 0, 0], [0, 1, 0]]),
        ("brightness", 1.0, [[1, 0, 0], [0, 1, 0]]),
        ("rotate", 1.0, [[0.8660, -0.25, 0], [1.0, 0.8660, 0]]),
        ("shear_x", -1.0, [[1, -0.15, 0], [0, 1, 0]]),
        ("shear_y", 0.5, [[1, 0, 0], [0.3, 1, 0]]),
        ("translate_x", 1.0, [[1, 0, 0.9063], [0, 1, 0]]),
        ("translate_y", -0.5, [[1, 0, 0], [0, 1, -0.4532]]),
    ],
)
def test_maps_of_the_geometric_operations(name, amount, expected):
    # Half as high as wide: a step along the height is half as many pixels.
    maps = operation_maps(torch.tensor([[OPERATIONS.index(name)]]), torch.tensor([[amount]]), (10, 20))
    torch.testing.assert_close(maps[0], torch.tensor([*expected, [0, 0, 1.0]]), atol=1e-4, rtol=0)


def test_geometric_operations_combine_in_order():
    codes = torch.tensor([[OPERATIONS.index("rotate"), OPERATIONS.index("translate_x")]])
    amounts = torch.tensor([[0.5, 0.3]])
    single = [operation_maps(codes[:, i : i + 1], amounts[:, i : i + 1], (8, 8)) for i in (0, 1)]
    torch.testing.assert_close(operation_maps(codes, amounts, (8, 8)), single[0] @ single[1])


def test_magnitude_zero_with_the_centre_cut_only_stretches_and_equalizes():
    images = torch.from_numpy(ARRAY).permute(2, 0, 1)[None].repeat(64, 1, 1, 1)
    views = augment(images, Augment(randaugment=1, magnitude=0), (20, 18), torch.Generator().manual_seed(0))
    centre = images[..., 2:22, 3:21].float()
    same = (views - centre).abs().amax((1, 2, 3)) < 0.01
    # Two of the fourteen have no magnitude: autocontrast and equalize.
    assert 0.7 < same.float().mean() < 0.97


def test_more_magnitude_changes_more():
    images = torch.from_numpy(ARRAY).permute(2, 0, 1)[None].repeat(64, 1, 1, 1)
    change = [
        (augment(images, Augment(randaugment=2, magnitude=m), (24, 24), torch.Generator().manual_seed(0)) - images)
        .abs()
        .mean()
        .item()
        for m in (0, 3, 6, 10)
    ]
    assert change == sorted(change)
    assert change[0] < 0.6 * change[-1]
