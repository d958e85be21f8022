"""BatchNorm within the convolution before it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.networks.registry import build
from zoo.networks.stages import is_batch_norm
from zoo.training.loop.methods.folding import folded


def _measured(model: nn.Module) -> list[str]:
    """Statistics as of real images, not 0 and 1; the names of the layers that have them."""
    torch.manual_seed(0)
    norms = {name: layer for name, layer in model.named_modules() if is_batch_norm(layer)}
    with torch.no_grad():
        for layer in norms.values():
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            if layer.weight is not None:
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.1)
    return list(norms)


def _gradients(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    logits = model(images)
    nn.functional.cross_entropy(logits, torch.arange(len(images)) % logits.shape[1]).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "least"),
    [("resnet10t", 12), ("tf_efficientnet_lite0", 49), ("mobilenetv3_small_050", 30), ("regnetx_002", 40)],
)
def test_logits_and_gradients_are_those_of_separate_layers(name, least):
    model = build(name, classes=3, channels=3).eval()
    norms = _measured(model)
    torch.manual_seed(1)
    for layer in model.modules():  # a classifier of zeros sends no gradient back
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.1)
    images = torch.randn(4, 3, 64, 64)
    logits, gradients = _gradients(model, images)
    names = list(model.state_dict())
    with folded(model, norms, images) as count:
        assert count >= least
        assert list(model.state_dict()) == names
        found, gained = _gradients(model, images)
    again, _ = _gradients(model, images)
    torch.testing.assert_close(found, logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(again, logits, rtol=0, atol=0)
    assert gained.keys() == gradients.keys()
    for key, gradient in gradients.items():
        scale = gradient.abs().max().clamp(min=1e-6)
        assert (gained[key] - gradient).abs().max() / scale < 2e-3, key


class _Shared(nn.Module):
    """A feature map that its BatchNorm is not alone to read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.first(images)
        return self.classifier((features + self.norm(features)).mean(dim=(2, 3)))


def test_a_feature_map_that_is_read_twice_stays():
    model = _Shared().eval()
    norms, images = _measured(model), torch.randn(2, 3, 8, 8)
    before = model(images)
    with folded(model, norms, images) as count:
        assert count == 0
        torch.testing.assert_close(model(images), before, rtol=0, atol=0)


def test_only_the_layers_that_are_named():
    model = build("resnet10t", classes=3, channels=3)
    norms = _measured(model)
    with folded(model, norms[:2], torch.randn(2, 3, 32, 32)) as count:
        assert count == 2
    assert model.training
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_a_network_without_such_layers():
    model = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT)
    with folded(model, [], torch.randn(2, 3, 32, 32)) as count:
        assert count == 0
