"""L2-SP against the formula, its gradient, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.base.errors import TrainingError
from zoo.networks.registry import build
from zoo.training.loop.methods.l2sp import l2sp, starting_point


class Small(nn.Module):
    """Two features of two inputs under a classifier of three."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 3)

    def get_classifier(self) -> nn.Linear:
        return self.head


def test_the_sum_by_hand_and_its_gradient():
    model = Small()
    start = starting_point(model)
    assert set(start) == {"body.weight", "body.bias", "norm.weight", "norm.bias"}
    assert l2sp(model, start, 0.5).item() == 0
    with torch.no_grad():
        model.body.weight += torch.tensor([[1.0, -2.0], [0.0, 3.0]])
        model.norm.bias += torch.tensor([0.0, 2.0])
        model.head.weight += 100
        model.frozen.weight += 100
        model.norm.running_mean += 100
    penalty = l2sp(model, start, 0.5)
    assert penalty.shape == () and penalty.item() == pytest.approx(0.5 / 2 * (1 + 4 + 9 + 4), rel=1e-6)
    penalty.backward()
    torch.testing.assert_close(model.body.weight.grad, torch.tensor([[0.5, -1.0], [0.0, 1.5]]))
    torch.testing.assert_close(model.norm.bias.grad, torch.tensor([0.0, 1.0]))
    assert model.head.weight.grad is None and model.frozen.weight.grad is None


def test_it_pulls_the_weights_back():
    model = Small()
    start = starting_point(model)
    with torch.no_grad():
        model.body.weight += 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        l2sp(model, start, 1.0).backward()
        optimizer.step()
    torch.testing.assert_close(model.body.weight, start["body.weight"] + 0.9**3)


def test_every_weight_of_a_network_but_the_classifiers():
    model = build("resnet10t", classes=3, channels=3)
    start = starting_point(model)
    assert sum(tensor.numel() for tensor in start.values()) == sum(p.numel() for p in model.parameters()) - 3 * 513
    assert not any(name.startswith("fc.") for name in start)


def test_nothing_but_a_classifier_to_train():
    model = Small().requires_grad_(False)
    model.head.requires_grad_(True)
    assert starting_point(model) == {} and l2sp(model, {}, 1.0).item() == 0


def test_a_start_that_does_not_fit():
    model = Small()
    start = starting_point(model)
    with pytest.raises(TrainingError, match=r"value of norm\.weight, shape \(2,\), and has none"):
        l2sp(model, {name: start[name] for name in start if name != "norm.weight"}, 1.0)
    with pytest.raises(TrainingError, match=r"body\.weight, shape \(2, 2\), and has one of shape \(3, 2\)"):
        l2sp(model, start | {"body.weight": torch.zeros(3, 2)}, 1.0)
