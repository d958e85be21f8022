"""MixUp and CutMix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.augment.mix import mix, mixes
from zoo.data.augment.pipeline import Augment

LABELS = torch.tensor([0, 1, 2, 3, 1])


def _mix(config: Augment, seed: int = 0, inputs: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    given_ = _numbered() if inputs is None else inputs
    return mix(given_, LABELS, 4, config, torch.Generator().manual_seed(seed))


def _numbered(height: int = 12, width: int = 16) -> torch.Tensor:
    """Image i is full of i + 1."""
    return (torch.arange(5.0) + 1)[:, None, None, None].expand(5, 3, height, width).clone()


def test_neither_leaves_everything_alone():
    inputs = _numbered()
    mixed, labels = _mix(Augment(mix_probability=1), inputs=inputs)
    assert mixed is inputs
    assert labels is LABELS


@pytest.mark.parametrize(("mixup", "cutmix", "expected"), [(0, 0, False), (0.2, 0, True), (0, 1, True), (1, 1, True)])
def test_whether_labels_become_soft(mixup, cutmix, expected):
    config = Augment(mixup=mixup, cutmix=cutmix)
    assert mixes(config) == expected
    assert _mix(config)[1].is_floating_point() == expected


@pytest.mark.parametrize("seed", range(5))
def test_mixup_is_lambda_of_each_and_the_rest_of_its_partner(seed):
    inputs = _numbered()
    mixed, targets = _mix(Augment(mixup=0.8), seed, inputs)
    share = targets[0, 0].item()  # image 0 has label 0, its partner, the last, label 1
    assert 0 < share < 1
    torch.testing.assert_close(mixed, share * inputs + (1 - share) * inputs.flip(0))
    torch.testing.assert_close(targets[0], torch.tensor([share, 1 - share, 0, 0]))
    torch.testing.assert_close(targets[1], torch.tensor([0, share, 0, 1 - share]))
    torch.testing.assert_close(targets[2], torch.tensor([0, 0, 1.0, 0]))
    assert torch.equal(inputs, _numbered())


@given(seed=st.integers(0, 10**6), height=st.integers(1, 20), width=st.integers(1, 20), alpha=st.floats(0.05, 5))
def test_cutmix_pastes_exactly_the_area_of_its_targets(seed, height, width, alpha):
    inputs = _numbered(height, width)
    mixed, targets = _mix(Augment(cutmix=alpha), seed, inputs)
    stayed = mixed[0, 0] == 1
    assert torch.equal(mixed[0, 0][~stayed], torch.full_like(mixed[0, 0][~stayed], 5))
    assert targets[0, 0].item() == pytest.approx(stayed.sum().item() / (height * width), abs=1e-6)
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
    if not stayed.all():
        pasted = torch.nonzero(~stayed)
        low, high = pasted.amin(0), pasted.amax(0)
        assert len(pasted) == int((high - low + 1).prod())
    for picture in range(5):
        assert torch.equal(mixed[picture, 2] == picture + 1, stayed | (picture == 2))
    assert torch.equal(inputs, _numbered(height, width))


def test_lambda_has_the_distribution_of_beta():
    shares = torch.tensor([_mix(Augment(mixup=0.4), seed)[1][0, 0].item() for seed in range(600)])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))
    assert shares.mean().item() == pytest.approx(0.5, abs=0.04)
    assert shares.var().item() == pytest.approx(1 / (4 * 1.8), abs=0.015)


def test_both_take_turns():
    cut = [len(_mix(Augment(mixup=1, cutmix=1), seed)[0][0].unique()) > 1 for seed in range(200)]
    assert 70 < sum(cut) < 130


def test_some_batches_stay_and_have_one_hot_targets():
    results = [_mix(Augment(mixup=1, mix_probability=0.25), seed) for seed in range(200)]
    untouched = [torch.equal(inputs, _numbered()) for inputs, _ in results]
    assert 120 < sum(untouched) < 180
    for same, (_, targets) in zip(untouched, results, strict=True):
        assert targets.dtype == torch.float32
        assert same == torch.equal(targets, torch.eye(4)[LABELS])


def test_the_generator_is_the_only_chance():
    config = Augment(mixup=0.3, cutmix=0.3)
    first = _mix(config)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(_mix(config), first, strict=True))
    assert not torch.equal(_mix(config, 1)[1], first[1])
