"""Stages of networks, and what is frozen when."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import UsageError
from zoo.networks.registry import build, classifier
from zoo.networks.stages import NORMS, Freezing, eval_frozen, live_norms, phases, stages, trained_at

NAMES = {
    "resnet18": ["conv1", "layer1", "layer2", "layer3", "layer4", "classifier"],
    "tf_efficientnet_lite0": ["conv_stem", *(f"blocks.{n}" for n in range(7)), "classifier"],
    "vit_tiny_patch16_224": ["cls_token", "blocks.0", "blocks.1", "classifier"],
    "convnext_atto": ["stem", "stages.0", "stages.1", "stages.2", "stages.3", "classifier"],
    "mobilenetv3_small_050": ["conv_stem", *(f"blocks.{n}" for n in range(6)), "classifier"],
    "densenet121": ["features.conv0", *(f"features.denseblock{n}" for n in range(1, 5)), "classifier"],
    "lenet": ["features.0", "features.3", "classifier"],
}


def _build(name: str) -> nn.Module:
    return build(name, classes=3, channels=1, arguments=TINY_VIT if name.startswith("vit") else {})


@pytest.mark.parametrize("name", NAMES)
def test_stages_hold_every_parameter_once_in_the_networks_order(name):
    model = _build(name)
    found = stages(model)
    assert [stage.name for stage in found] == NAMES[name]
    listed = [parameter for stage in found for parameter in stage.parameters]
    assert sorted(listed) == sorted(dict(model.named_parameters()))
    head = {id(parameter) for parameter in classifier(model).parameters()}
    named = dict(model.named_parameters())
    assert {id(named[parameter]) for parameter in found[-1].parameters} == head


def test_a_norm_of_its_own_belongs_to_the_convolution_before_it():
    # timm numbers VGG's convolutions and norms separately.
    found = stages(_build("vgg11_bn"))
    assert len(found) == 9
    assert found[0].parameters == ("features.0.weight", "features.0.bias", "features.1.weight", "features.1.bias")
    assert "pre_logits.fc2.weight" in found[-2].parameters


def test_the_last_stages_are_trained():
    model = _build("resnet18")
    found = stages(model)
    for count in range(1, 7):
        chosen = trained_at(model, Freezing(stages=count), 0)
        assert chosen == {name for stage in found[-count:] for name in stage.parameters}
    assert trained_at(model, Freezing(), 0) == set(dict(model.named_parameters()))
    with pytest.raises(UsageError, match=r"asks for 7 stages, the network has 6: conv1, layer1"):
        trained_at(model, Freezing(stages=7), 0)


def test_gradual_unfreezing_adds_stages():
    model = _build("resnet18")
    config = Freezing(unfreeze=(0, 2, 2, 5))
    counts = [len({n.split(".")[0] for n in trained_at(model, config, epoch)}) for epoch in range(7)]
    assert counts == [1, 1, 3, 3, 3, 4, 4]
    assert phases(config, 7) == [range(0, 2), range(2, 5), range(5, 7)]
    with pytest.raises(UsageError, match="would join in epoch 5, counted from 0, but there are 5 epochs"):
        phases(config, 5)
    assert phases(Freezing(stages=1), 3) == [range(0, 3)]


def test_norms_only_and_everything_but_norms():
    model = _build("resnet18")
    affine = {
        f"{name}.{key}"
        for name, module in model.named_modules()
        if isinstance(module, NORMS)
        for key in ("weight", "bias")
    }
    head = {"fc.weight", "fc.bias"}
    assert len(affine) == 40
    assert trained_at(model, Freezing(norms_only=True), 0) == affine | head
    everything = set(dict(model.named_parameters()))
    assert trained_at(model, Freezing(norm_affine=False), 0) == everything - affine


@pytest.mark.parametrize(
    ("config", "live"),
    [
        (Freezing(), {"stem", "last"}),
        (Freezing(norm="reestimate"), {"stem", "last"}),
        (Freezing(norm="freeze"), set()),
        (Freezing(stages=2), {"last"}),
        (Freezing(stages=1), set()),
        (Freezing(stages=1, frozen_norm="update"), {"stem", "last"}),
        (Freezing(stages=2, norm="freeze", frozen_norm="update"), {"stem"}),
        (Freezing(norm_affine=False), {"stem", "last"}),
        (Freezing(norms_only=True), {"stem", "last"}),
    ],
)
def test_freezing_layers_freezes_their_statistics_unless_asked_otherwise(config, live):
    model = _build("resnet18")
    norms = {"stem": model.bn1, "last": model.layer4[1].bn2}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    model.train()
    moving = eval_frozen(model, config, 0)
    model(torch.rand(4, 1, 32, 32))
    assert {name for name, norm in norms.items() if not torch.equal(norm.running_mean, before[name])} == live
    assert set(moving) == set(live_norms(model, config, 0))
    assert {name for name, norm in norms.items() if any(norm is module for module in moving.values())} == live


def test_dropout_of_frozen_layers_is_off_and_of_the_classifier_on():
    rates = {"drop_rate": 0.5, "pos_drop_rate": 0.2, "attn_drop_rate": 0.1}
    model = build("vit_tiny_patch16_224", classes=3, channels=1, arguments={**TINY_VIT, **rates})
    dropouts = (model.pos_drop, model.blocks[0].attn.attn_drop, model.blocks[1].attn.attn_drop, model.head_drop)
    for config, expected in (
        (Freezing(stages=1), (False, False, False, True)),
        (Freezing(stages=2), (False, False, True, True)),
        (Freezing(), (True, True, True, True)),
    ):
        model.train()
        eval_frozen(model, config, 0)
        assert tuple(dropout.training for dropout in dropouts) == expected


def test_a_batchnorm_without_scale_goes_with_its_stage():
    model = nn.Sequential()
    model.add_module("stem", nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, affine=False)))
    model.add_module("body", nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2, affine=False), nn.Flatten()))
    model.add_module("head", nn.Linear(2, 3))
    model.get_classifier = lambda: model.head
    assert [stage.name for stage in stages(model)] == ["stem", "body", "classifier"]
    assert set(live_norms(model, Freezing(stages=1), 0)) == set()
    assert set(live_norms(model, Freezing(stages=2), 0)) == {"body.1"}
    assert set(live_norms(model, Freezing(stages=3), 0)) == {"stem.1", "body.1"}


def test_a_network_whose_coarse_groups_timm_does_not_know():
    assert len(stages(_build("rdnet_tiny"))) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 0}, r"stages must be at least 1"),
        ({"stages": 1, "unfreeze": (0,)}, r"stages or train\.freeze\.unfreeze, not both"),
        ({"unfreeze": (1, 2)}, r"rising numbers that begin with 0, got \[1, 2\]"),
        ({"unfreeze": (0, 3, 2)}, r"rising numbers that begin with 0"),
        ({"norm": "update_all"}, r"must be 'update', 'freeze' or 'reestimate'"),
        ({"frozen_norm": "x"}, r"must be 'freeze' or 'update'"),
        ({"norms_only": True, "norm_affine": False}, r"choose one"),
    ],
)
def test_contradictions(options, message):
    with pytest.raises(UsageError, match=message):
        Freezing(**options)
