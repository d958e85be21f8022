"""Brightness, contrast, saturation and hue as one map."""

from __future__ import annotations

import colorsys

import pytest
import torch

from zoo.data.augment.colour import adjust_colours

IMAGES = torch.rand(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)) * 60 + 100
LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def test_the_four_together_are_the_four_one_after_the_other():
    factors = {
        "brightness": torch.tensor([0.9, 1.1, 1.0, 1.2]),
        "contrast": torch.tensor([1.1, 0.8, 1.2, 1.0]),
        "saturation": torch.tensor([0.5, 1.5, 0.0, 1.0]),
        "hue": torch.tensor([0.1, -0.1, 0.2, 0.0]),
    }
    stepwise = IMAGES
    for name, values in factors.items():
        stepwise = adjust_colours(stepwise, **{name: values})
    torch.testing.assert_close(adjust_colours(IMAGES, **factors), stepwise, atol=0.01, rtol=0)


def test_no_saturation_is_grey():
    grey = adjust_colours(IMAGES, saturation=torch.zeros(4))
    torch.testing.assert_close(grey, (IMAGES * LUMA).sum(1, keepdim=True).expand_as(IMAGES))


def test_no_contrast_is_the_mean_grey_rounded():
    flat = adjust_colours(IMAGES, contrast=torch.zeros(4))
    expected = (IMAGES * LUMA).sum(1).mean((1, 2)).round()[:, None, None, None].expand_as(IMAGES)
    torch.testing.assert_close(flat, expected)


def test_a_whole_turn_of_the_hue_is_none():
    torch.testing.assert_close(adjust_colours(IMAGES, hue=torch.ones(4)), IMAGES, atol=0.01, rtol=0)


@pytest.mark.parametrize("turn", [-0.1, 0.1, 1 / 3])
def test_the_hue_turns_about_as_far_as_in_hsv(turn):
    colours = torch.tensor([[160.0, 110, 110], [110, 160, 110], [110, 110, 160], [160, 160, 110]])[:, :, None, None]
    turned = adjust_colours(colours, hue=torch.full((4,), turn))[:, :, 0, 0] / 255
    for before, after in zip(colours[:, :, 0, 0] / 255, turned, strict=True):
        angle = colorsys.rgb_to_hsv(*after.tolist())[0] - colorsys.rgb_to_hsv(*before.tolist())[0]
        assert (angle - turn + 0.5) % 1 - 0.5 == pytest.approx(0, abs=0.075)


def test_the_given_pictures_stay_and_the_range_is_kept():
    before = IMAGES.clone()
    bright = adjust_colours(IMAGES, brightness=torch.full((4,), 9.0), saturation=torch.full((4,), 5.0))
    assert torch.equal(IMAGES, before)
    assert bright.max() == 255
    assert bright.min() >= 0
