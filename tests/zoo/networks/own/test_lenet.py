"""The small network of our own."""

from __future__ import annotations

import torch

from zoo.networks.own.lenet import LeNet


def test_parameters_and_shapes():
    model = LeNet(classes=10, channels=1)
    # 16 x 25 + 16, 32 x 16 x 25 + 32, 10 x 1568 + 10
    assert [p.numel() for p in model.parameters()] == [400, 16, 12_800, 32, 15_680, 10]
    assert sum(p.numel() for p in model.parameters()) == 28_938
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert model.get_classifier() is model.head


def test_its_classifier_can_be_replaced():
    model = LeNet(classes=10, channels=1)
    model.reset_classifier(3)
    assert (model.get_classifier().in_features, model.get_classifier().out_features) == (1568, 3)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 3)
