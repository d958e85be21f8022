"""Losses, against torch's and by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from zoo.base.errors import DataError, UsageError
from zoo.training.loop.losses import Loss, class_weights, cross_entropy, focal

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(7, 4, generator=GENERATOR) * 2
LABELS = torch.tensor([0, 1, 2, 3, 3, 0, 1])
SOFT = torch.rand(7, 4, generator=GENERATOR).softmax(1)
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1])


def _value(loss: Loss, targets: torch.Tensor, logits: torch.Tensor = LOGITS) -> float:
    return loss(torch.zeros(len(logits), 3, 2, 2), logits, targets).item()


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_weights_cross_entropy_is_torchs(smoothing, targets):
    expected = functional.cross_entropy(LOGITS, targets, label_smoothing=smoothing).item()
    assert _value(cross_entropy(smoothing), targets) == pytest.approx(expected, abs=1e-6)


def test_weights_are_averaged_over_the_batch_not_over_themselves():
    by_hand = sum(
        -WEIGHTS[label].item() * math.log(math.exp(row[label]) / sum(math.exp(x) for x in row.tolist()))
        for row, label in zip(LOGITS, LABELS.tolist(), strict=True)
    )
    assert _value(cross_entropy(0.0, WEIGHTS), LABELS) == pytest.approx(by_hand / 7, abs=1e-5)
    torchs = functional.cross_entropy(LOGITS, LABELS, WEIGHTS).item()
    assert _value(cross_entropy(0.0, WEIGHTS), LABELS) == pytest.approx(
        torchs * WEIGHTS[LABELS].mean().item(), abs=1e-5
    )


@pytest.mark.parametrize("make", [cross_entropy, lambda *args: focal(2.0, *args)], ids=["cross-entropy", "focal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_parts_of_a_batch_average_to_the_whole(make, smoothing):
    loss = make(smoothing, WEIGHTS)
    parts = [_value(loss, LABELS[rows], LOGITS[rows]) for rows in (slice(0, 3), slice(3, 7))]
    assert _value(loss, LABELS) == pytest.approx((3 * parts[0] + 4 * parts[1]) / 7, abs=1e-6)


@pytest.mark.parametrize("make", [cross_entropy, lambda *args: focal(1.5, *args)], ids=["cross-entropy", "focal"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_one_hot_targets_are_labels(make, weights):
    one_hot = functional.one_hot(LABELS, 4).float()
    loss = make(0.1, weights)
    assert _value(loss, one_hot) == pytest.approx(_value(loss, LABELS), abs=1e-6)


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "soft"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_of_zero_is_cross_entropy(smoothing, weights, targets):
    expected = _value(cross_entropy(smoothing, weights), targets)
    assert _value(focal(0.0, smoothing, weights), targets) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_by_hand(gamma):
    by_hand = [-((1 - p) ** gamma) * math.log(p) for p in LOGITS.softmax(1)[range(7), LABELS].tolist()]
    assert _value(focal(gamma), LABELS) == pytest.approx(sum(by_hand) / 7, abs=1e-5)
    p = LOGITS.softmax(1)
    soft = (-SOFT * (1 - p) ** gamma * p.log()).sum(1).mean().item()
    assert _value(focal(gamma), SOFT) == pytest.approx(soft, abs=1e-5)


@given(gamma=st.floats(0, 5), scale=st.floats(0.1, 1000), smoothing=st.sampled_from([0.0, 0.1]))
def test_values_and_gradients_stay_finite(gamma, scale, smoothing):
    for loss in (focal(gamma, smoothing, WEIGHTS), cross_entropy(smoothing, WEIGHTS)):
        logits = (LOGITS * scale).clone().requires_grad_()
        value = loss(torch.zeros(7, 3, 2, 2), logits, LABELS)
        value.backward()
        assert value.item() >= 0
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_lose_nothing_more():
    half = LOGITS.bfloat16()
    for make in (cross_entropy, lambda *args: focal(2.0, *args)):
        loss = make(0.1, WEIGHTS)
        assert loss(torch.zeros(7, 3, 2, 2), half, LABELS).dtype == torch.float32
        assert _value(loss, LABELS, half) == _value(loss, LABELS, half.float())


def test_class_weights_balance_the_classes():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3)
    # scikit-learn's class_weight="balanced": n / (K n_k)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert weights.dtype == torch.float32
    assert weights[labels].mean().item() == pytest.approx(1)
    assert (weights * torch.bincount(labels)).tolist() == pytest.approx([10 / 3] * 3)
    assert class_weights(torch.arange(5), 5).tolist() == [1] * 5


def test_a_class_without_pictures_has_no_weight():
    with pytest.raises(DataError, match=r"class weights: 2 of 4 labels have no training image \(number 1, counted"):
        class_weights(torch.tensor([0, 2]), 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cross_entropy(1.5), r"label_smoothing: expected a share from 0 to 1, got 1\.5"),
        (lambda: focal(2, -0.1), r"label_smoothing: expected a share from 0 to 1, got -0\.1"),
        (lambda: focal(-1), r"focal_gamma: expected a number of at least 0, got -1"),
        (lambda: focal(math.nan), r"focal_gamma: expected a number of at least 0, got nan"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
