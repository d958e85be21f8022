"""Augmentation of whole batches."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from zoo.datasets.augment import Augment, augment
from zoo.errors import UsageError

IMAGES = torch.randint(0, 256, (6, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STRONG = Augment(area=(0.4, 1.2), aspect=1.5, rotate=20, shift=0.1, flip=True, erase=0.5)


def _augment(config: Augment, size: tuple[int, int] = (12, 12), seed: int = 0) -> torch.Tensor:
    return augment(IMAGES, config, size, torch.Generator().manual_seed(seed))


def test_the_defaults_change_nothing():
    assert torch.equal(_augment(Augment()), IMAGES.float())


def test_an_identity_map_changes_nothing_either():
    torch.testing.assert_close(_augment(Augment(padding="border")), IMAGES.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size", [(12, 12), (8, 10)])
def test_shape_type_and_range(size):
    views = _augment(STRONG, size)
    assert (views.shape, views.dtype) == ((6, 3, *size), torch.float32)
    assert views.min() >= 0 and views.max() <= 255.001
    assert IMAGES.dtype == torch.uint8


def test_the_generator_is_the_only_chance():
    torch.manual_seed(1)
    first = _augment(STRONG)
    torch.manual_seed(2)
    assert torch.equal(_augment(STRONG), first)
    assert not torch.equal(_augment(STRONG, seed=1), first)


def test_flip_mirrors_about_every_second_picture_whole():
    images = IMAGES[:1].repeat(200, 1, 1, 1)
    views = augment(images, Augment(flip=True), (12, 12), torch.Generator().manual_seed(0))
    plain = [torch.allclose(view, images[0].float(), atol=1e-3) for view in views]
    mirrored = [torch.allclose(view, images[0].float().flip(-1), atol=1e-3) for view in views]
    assert all(a != b for a, b in zip(plain, mirrored, strict=True))
    assert 70 < sum(mirrored) < 130


def test_a_smaller_area_stays_inside_the_picture():
    white = torch.full((50, 1, 16, 16), 255, dtype=torch.uint8)
    inside = augment(white, Augment(area=(0.3, 0.6)), (16, 16), torch.Generator().manual_seed(0))
    # The outermost pixels may be interpolated with what lies outside.
    assert inside[:, :, 1:-1, 1:-1].min() == pytest.approx(255, abs=1e-2)


def test_what_lies_outside():
    white = torch.full((4, 1, 16, 16), 255, dtype=torch.uint8)
    config = Augment(area=(4.0, 4.0))
    zoomed_out = augment(white, config, (16, 16), torch.Generator().manual_seed(0))
    assert zoomed_out[0, 0, 0, 0] == 0 and zoomed_out[0, 0, 8, 8] == 255
    border = augment(white, dataclasses.replace(config, padding="border"), (16, 16), torch.Generator().manual_seed(0))
    assert border.min() == pytest.approx(255, abs=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"area": (0.0, 1.0)}, r"augment\.area: expected positive shares, smallest first, got \(0\.0, 1\.0\)"),
        ({"area": (1.0, 0.5)}, r"augment\.area"),
        ({"aspect": 0.0}, r"augment\.aspect: expected a positive factor, got 0"),
        ({"padding": "zero"}, r"augment\.padding: expected zeros, border or reflection, got 'zero'"),
        ({"erase": 1.5}, r"augment\.erase: expected a probability, got 1\.5"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Augment(**changes)


def test_erasing_blanks_a_tenth():
    white = torch.full((40, 1, 20, 20), 255, dtype=torch.uint8)
    views = augment(white, Augment(erase=0.5, padding="border"), (20, 20), torch.Generator().manual_seed(0))
    blank = (views == 0).flatten(1).sum(1)
    # round(20 x sqrt(0.1)) squared
    assert set(blank.tolist()) == {0, 36}
    assert 10 < (blank > 0).sum() < 30
