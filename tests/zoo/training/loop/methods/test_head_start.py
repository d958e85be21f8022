"""A classifier that begins as a logistic regression."""

from __future__ import annotations

import pytest
import torch

from zoo.artefact.card import Head
from zoo.base.errors import UsageError
from zoo.networks.heads import add_head
from zoo.networks.registry import build
from zoo.training.loop.methods.head_start import fit_head


def _images(classes: int, each: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise around another grey for each class."""
    torch.manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(each)
    return torch.randn(len(labels), 3, 32, 32) * 0.3 + labels.view(-1, 1, 1, 1).float(), labels


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", ["resnet10t", "deit_tiny_distilled_patch16_224", "mobilenetv3_small_050"])
def test_it_tells_apart_what_the_features_tell_apart(name, classes):
    arguments = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 48} if "deit" in name else {}
    model = build(name, classes=classes, channels=3, arguments=arguments).train()
    images, labels = _images(classes)
    assert fit_head(model, [(images[:30], labels[:30]), (images[30:], labels[30:])]) == len(labels)
    assert model.training
    logits = model.eval()(images)
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.7


def test_a_label_without_images_is_the_least_probable():
    model = build("resnet10t", classes=4, channels=3)
    images, labels = _images(3)
    fit_head(model, [(images, labels)])
    with torch.no_grad():
        assert (model.eval()(images).softmax(dim=1)[:, 3] < 0.4).all()
    assert model.fc.weight[3].abs().max() == 0


def test_one_class_alone_is_left_as_it_is():
    model = build("resnet10t", classes=2, channels=3)
    images, labels = _images(1)
    fit_head(model, [(images, labels)])
    assert model.fc.weight.abs().max() > 0


def test_a_head_of_several_layers_is_refused():
    model = build("resnet10t", classes=2, channels=3)
    add_head(model, Head(kind="mlp", hidden=4), 2)
    with pytest.raises(UsageError, match="linear classifier, that of ResNet has 4"):
        fit_head(model, [_images(2)])
