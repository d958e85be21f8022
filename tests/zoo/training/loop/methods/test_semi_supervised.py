"""Losses of unlabelled images against hand-computed numbers."""

from __future__ import annotations

import math

import pytest
import torch

from zoo.base.errors import UsageError
from zoo.training.loop.methods.semi_supervised import Unlabelled, fixmatch_loss, pseudo_label_loss, ramp_weight

# Odds of 19:1, 3:1 and 1:9: confidences 0.95, 0.75 and 0.9 for the labels 0, 0 and 1.
WEAK = torch.tensor([[math.log(19), 0.0], [math.log(3), 0.0], [0.0, math.log(9)]])
STRONG = torch.tensor([[0.0, 0.0], [5.0, 0.0], [math.log(4), 0.0]])


@pytest.mark.parametrize(
    ("threshold", "losses", "share"),
    [
        (0.0, [math.log(2), math.log1p(math.exp(-5)), math.log(5)], 1.0),
        (0.8, [math.log(2), 0.0, math.log(5)], 2 / 3),
        (0.94, [math.log(2), 0.0, 0.0], 1 / 3),
        (1.0, [0.0, 0.0, 0.0], 0.0),
    ],
)
def test_the_mean_is_over_all_images_and_the_rejected_add_zero(threshold, losses, share):
    loss, accepted = fixmatch_loss(WEAK, STRONG, threshold)
    assert loss.item() == pytest.approx(sum(losses) / 3, abs=1e-6)
    assert accepted == pytest.approx(share)


def test_the_gradient_flows_through_accepted_strong_views_only():
    weak, strong = WEAK.clone().requires_grad_(), STRONG.clone().requires_grad_()
    fixmatch_loss(weak, strong, 0.8)[0].backward()
    assert weak.grad is None
    # (softmax - one-hot) / 3 of the accepted rows
    expected = torch.tensor([[-0.5, 0.5], [0.0, 0.0], [0.8, -0.8]]) / 3
    torch.testing.assert_close(strong.grad, expected)


def test_pseudo_labels_teach_their_own_answers():
    logits = WEAK.clone().requires_grad_()
    loss, share = pseudo_label_loss(logits, 0.8)
    loss.backward()
    assert (loss.item(), share) == (pytest.approx(-math.log(0.95 * 0.9) / 3, abs=1e-6), pytest.approx(2 / 3))
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.05, 0.05], [0.0, 0.0], [0.1, -0.1]]) / 3)


def test_soft_targets_are_sharpened_probabilities():
    loss, share = fixmatch_loss(WEAK[1:2], STRONG[2:], 0.7, temperature=0.5)
    # 3:1 at the temperature 1/2 is 9:1; the strong view says 0.8 and 0.2.
    assert loss.item() == pytest.approx(-0.9 * math.log(0.8) - 0.1 * math.log(0.2), abs=1e-6)
    assert share == 1.0, "the threshold is for the probabilities before sharpening"
    assert fixmatch_loss(WEAK[1:2], STRONG[2:], 0.8, temperature=0.5)[0] == 0


def test_soft_targets_carry_no_gradient_either():
    logits = WEAK.clone().requires_grad_()
    pseudo_label_loss(logits, 0.0, temperature=1.0)[0].backward()
    torch.testing.assert_close(logits.grad, torch.zeros(3, 2))


def test_bfloat16_answers_are_judged_in_float32():
    loss, share = fixmatch_loss(torch.tensor([[3.0, 0.0]]).bfloat16(), torch.zeros(1, 2).bfloat16(), 0.9525)
    assert (loss.dtype, share) == (torch.float32, 1.0), "softmax([3, 0]) = 0.9526, in bfloat16 0.9531 or 0.9492"


@pytest.mark.parametrize(
    ("ramp", "progress", "weight"),
    [(0.0, 0.0, 2.0), (0.5, 0.0, 0.0), (0.5, 0.125, 0.5), (0.5, 0.5, 2.0), (0.5, 0.9, 2.0), (1.0, 1.0, 2.0)],
)
def test_the_weight_rises_and_stays(ramp, progress, weight):
    assert ramp_weight(progress, Unlabelled(weight=2.0, ramp=ramp)) == pytest.approx(weight)


def test_logits_of_different_images():
    with pytest.raises(UsageError, match=r"weak \(3, 2\) and strong \(2, 2\)"):
        fixmatch_loss(WEAK, STRONG[:2], 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "fixmach"}, r"unknown unlabelled\.method 'fixmach'; did you mean fixmatch\?"),
        ({"threshold": 1.1}, r"unlabelled\.threshold must be in \[0, 1\], got 1\.1"),
        ({"weight": 0.0}, r"unlabelled\.weight must be a positive number, got 0\.0"),
        ({"ratio": 0}, r"unlabelled\.ratio must be at least 1, got 0"),
        ({"ramp": -0.1}, r"unlabelled\.ramp must be in \[0, 1\], got -0\.1"),
        ({"temperature": math.inf}, r"unlabelled\.temperature must be at least 0, got inf"),
    ],
)
def test_what_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        Unlabelled(**changes)
