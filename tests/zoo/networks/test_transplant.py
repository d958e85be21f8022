"""An old classifier on new features."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import ArtefactError
from zoo.networks.lora import add_lora
from zoo.networks.registry import build
from zoo.networks.transplant import classifier_tensors, transplant_head


def _network(name: str, seed: int, classes: int = 3, **arguments: object) -> nn.Module:
    torch.manual_seed(seed)
    model = build(name, classes=classes, channels=3, arguments=arguments)
    for buffer in model.buffers():
        buffer.add_(seed + 1)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "arguments", "names"),
    [
        ("vit_tiny_patch16_224", TINY_VIT, {"head.weight", "head.bias"}),
        ("resnet10t", {}, {"fc.weight", "fc.bias"}),
        ("convnext_atto", {"depths": (1, 1, 1, 1)}, {"head.fc.weight", "head.fc.bias"}),
    ],
)
@torch.no_grad()
def test_features_of_one_and_classifier_of_the_other(name, arguments, names):
    old, new = _network(name, 0, **arguments), _network(name, 1, classes=5, **arguments)
    before = [copy.deepcopy(model.state_dict()) for model in (old, new)]
    grafted = transplant_head(new, old)
    assert classifier_tensors(old) == names
    for key, tensor in grafted.state_dict().items():
        assert torch.equal(tensor, before[0 if key in names else 1][key]), key
    images = torch.rand(2, 3, 32, 32)
    features = new.forward_head(new.forward_features(images), pre_logits=True)
    torch.testing.assert_close(grafted(images), old.get_classifier()(features))
    for model, state in zip((old, new), before, strict=True):
        assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_only_the_classifiers_may_differ():
    old = _network("vit_tiny_patch16_224", 0, **TINY_VIT)
    wider = _network("vit_tiny_patch16_224", 0, **(TINY_VIT | {"embed_dim": 96}))
    deeper = _network("vit_tiny_patch16_224", 0, **(TINY_VIT | {"depth": 3}))
    with pytest.raises(ArtefactError, match=r"cls_token: \(1, 1, 96\) in the body, \(1, 1, 48\) in the network with"):
        transplant_head(wider, old)
    with pytest.raises(ArtefactError, match=r"only the body has 'blocks\.2\.attn\.proj\.bias'"):
        transplant_head(deeper, old)
    adapted = copy.deepcopy(old)
    add_lora(adapted, targets=["fc1"], rank=1, alpha=1.0)
    with pytest.raises(ArtefactError, match=r"only the body has 'blocks\.0\.mlp\.fc1\.base\.bias'; .* adapters merged"):
        transplant_head(adapted, old)
