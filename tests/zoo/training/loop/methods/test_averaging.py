"""The average of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.training.loop.methods.averaging import Average


def test_the_average_follows_the_formula():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        model[0].weight.fill_(0.0)
    average = Average(model, 0.9)
    expected = 0.0
    for step in range(1, 40):
        with torch.no_grad():
            model[0].weight.fill_(float(step))
        model[1].num_batches_tracked += 1
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert average.state["0.weight"].item() == pytest.approx(expected, rel=1e-5)
    assert average.state["1.num_batches_tracked"] == 39
    with average.applied(model):
        assert model[0].weight.item() == pytest.approx(expected, rel=1e-5)
    assert model[0].weight.item() == 39


def test_a_module_of_two_names_is_averaged_once_a_step():
    model = nn.Sequential(layer := nn.Linear(1, 1, bias=False), layer)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average = Average(model, 0.9)
    with torch.no_grad():
        layer.weight.fill_(11.0)
    average.update(model, 1)
    assert [tensor.item() for tensor in average.state.values()] == pytest.approx([9.0, 9.0])  # decay 2 / 11
