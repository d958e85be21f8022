"""Networks up to a layer: the layer's own output, pooled, through files, export and pruning."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from compress.export import export
from compress.prune.stage import prune
from tests.zoo.factories import TINY_VIT, make_card, make_input
from zoo.artefact.card import Head
from zoo.base.errors import ArtefactError, UsageError
from zoo.networks import checkpoint
from zoo.networks.cutting.truncate import Features, features_of, layer_names, truncate
from zoo.networks.heads import add_head
from zoo.networks.registry import build, classifier_width, count_macs
from zoo.networks.stages import stages
from zoo.training.recipe import PruneConfig

SWIN = {"img_size": 32, "window_size": 2, "depths": [2, 1], "num_heads": [1, 2], "embed_dim": 8}
NETS: dict[str, dict[str, Any]] = {
    "efficientvim_m1": {},
    "googlenet": {},
    "cait_xxs24_224": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 1},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "densenet121": {"block_config": [2, 2], "growth_rate": 4},
    # Its stem folds 4 x 4 pixels into channels.
    "tresnet_m": {"layers": [1, 1, 1, 1], "width_factor": 0.25},
    "lenet": {},
    "resnet10t": {"channels": [8, 8, 16, 16]},
    "swin_tiny_patch4_window7_224": SWIN,
    "vit_small_patch16_dinov3": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2},
    "vit_tiny_patch16_224": TINY_VIT,
}


def _net(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(name, classes=3, channels=3, arguments=NETS[name]).eval()


def _images(name: str = "", count: int = 2) -> torch.Tensor:
    edge = 28 if name == "lenet" else 32
    return torch.rand(count, 3, edge, edge, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def _seen(model: nn.Module, layer: str, images: torch.Tensor) -> torch.Tensor:
    """What a layer returns when the whole network runs."""
    found: list[torch.Tensor] = []
    # Layers that come after may change it in place.
    hook = model.get_submodule(layer).register_forward_hook(lambda *args: found.append(args[2].clone()))
    model(images)
    hook.remove()
    return found[-1]


CASES = [
    ("resnet10t", "layer2", lambda x: x.mean((2, 3)), 8),
    ("resnet10t", "layer4.0.bn1", lambda x: x.mean((2, 3)), 16),
    ("resnet10t", "global_pool", lambda x: x, 16),
    ("lenet", "features.2", lambda x: x.mean((2, 3)), 16),
    ("lenet", "features", lambda x: x, 1568),
    # A block that is a dictionary of layers with a forward function of its own.
    ("densenet121", "features.denseblock1", lambda x: x.mean((2, 3)), 16),
    ("googlenet", "inception3a.branch2", lambda x: x.mean((2, 3)), 128),
    ("convnext_atto", "stages.1", lambda x: x.mean((2, 3)), 8),
    ("vit_tiny_patch16_224", "blocks.0", lambda x: x[:, 0], 48),
    ("vit_tiny_patch16_224", "blocks.1.mlp.fc1", lambda x: x[:, 0], 192),
    ("vit_tiny_patch16_224", "patch_embed", lambda x: x.mean(1), 48),
    # Its blocks have no class token yet.
    ("cait_xxs24_224", "blocks.0", lambda x: x.mean(1), 16),
    # A class token and four registers.
    ("vit_small_patch16_dinov3", "blocks.0", lambda x: x[:, 0], 16),
    ("swin_tiny_patch4_window7_224", "patch_embed", lambda x: x.mean((1, 2)), 8),
    # Four by four pixels of sixteen channels, then eight by eight pixels of eight channels.
    ("swin_tiny_patch4_window7_224", "layers.1", lambda x: x.mean((1, 2)), 16),
    ("swin_tiny_patch4_window7_224", "layers.0.blocks.1", lambda x: x.mean((1, 2)), 8),
    ("swin_tiny_patch4_window7_224", "layers.1.blocks.0.mlp", lambda x: x.mean(1), 16),
]


@pytest.mark.parametrize(("name", "layer", "pool", "width"), CASES)
def test_features_are_the_layers_pooled_output(name, layer, pool, width):
    model, images = _net(name), _images(name)
    expected = pool(_seen(model, layer, images))
    features = features_of(model, layer)
    with torch.inference_mode():
        found = features(images)
        assert found.shape == expected.shape == (2, width)
        assert torch.equal(found, expected)
        if name != "vit_small_patch16_dinov3":
            assert torch.equal(truncate(model, layer, 3).features(images), expected)
    assert not model.training


def test_heads_of_different_features_have_none_in_common():
    with pytest.raises(UsageError, match="EfficientViM gives no features at layer 'before the classifier'"):
        features_of(_net("efficientvim_m1"))


@pytest.mark.parametrize("name", sorted(set(NETS) - {"efficientvim_m1"}))
def test_features_without_a_layer_are_what_the_classifier_is_given(name):
    model, images = _net(name), _images(name)
    given: list[torch.Tensor] = []
    head = model.get_classifier()
    hook = head.register_forward_hook(lambda *args: given.append(args[1][0]))
    with torch.inference_mode():
        logits = model(images)
        hook.remove()
        found = features_of(model)(images)
        assert torch.equal(found, given[0])
        assert torch.equal(head(found), logits)
    assert model.get_classifier() is head


@pytest.mark.parametrize(
    ("name", "layer", "head"),
    [
        ("resnet10t", "layer3", None),
        ("vit_tiny_patch16_224", "blocks.0", Head(kind="mlp", hidden=8)),
        ("swin_tiny_patch4_window7_224", "layers.0", None),
    ],
)
def test_it_comes_back_from_its_file_and_exports(name, layer, head, tmp_path):
    whole = _net(name)
    parameters = sum(p.numel() for p in whole.parameters())
    model = truncate(whole, layer, 3)
    if head:
        add_head(model, head, 3)
    nn.init.normal_([*model.parameters()][-2], generator=torch.Generator().manual_seed(1))
    model.eval()
    spec = make_input(32)
    card = make_card(architecture=name, spec=spec, stages=("train",), arguments=NETS[name])
    card = dataclasses.replace(
        card,
        build=dataclasses.replace(card.build, layer=layer, head=head),
        inform=dataclasses.replace(card.inform, macs=count_macs(model, spec)),
    )
    assert checkpoint.save(model, card, tmp_path / "m").inform.parameters < parameters
    loaded, found = checkpoint.load(tmp_path / "m")
    assert (found.build.layer, classifier_width(loaded)) == (layer, 3)
    with torch.inference_mode():
        logits = model(_images())
        assert torch.equal(loaded(_images()), logits)
    assert logits.std() > 0
    assert export(tmp_path / "m", tmp_path / "m.onnx").lineage[-1].summary["parity"] <= 1e-4


@pytest.mark.parametrize(("name", "layer"), [("resnet10t", "layer3"), ("vit_tiny_patch16_224", "blocks.0")])
def test_it_can_be_pruned(name, layer, tmp_path):
    model = truncate(_net(name), layer, 3).eval()
    card = make_card(architecture=name, spec=make_input(32), stages=("train",), arguments=NETS[name])
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, layer=layer))
    checkpoint.save(model, card, tmp_path / "m")
    done = prune(tmp_path / "m", tmp_path / "p", PruneConfig(macs=0.7, round_to=2))
    assert done.macs_after <= 0.7 * done.macs_before
    pruned, found = checkpoint.load(tmp_path / "p")
    assert count_macs(pruned, found.use.input) == found.inform.macs == done.macs_after


def test_a_truncated_network_learns_in_training_mode():
    model = truncate(_net("resnet10t"), "layer2", 3).train()
    loss = nn.functional.cross_entropy(model(_images()), torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == pytest.approx(1.0986, abs=1e-4)  # log 3: every label equally probable
    before = model.features.network.get_submodule("bn1").running_mean.clone()
    model(_images())
    assert not torch.equal(model.features.network.get_submodule("bn1").running_mean, before)
    model.reset_classifier(5)
    assert model(_images()).shape == (2, 5)


def test_its_stages_are_the_whole_networks():
    found = stages(truncate(_net("vit_tiny_patch16_224"), "blocks.1", 3))
    assert [stage.name for stage in found][1:] == [
        "features.network.blocks.0",
        "features.network.blocks.1",
        "classifier",
    ]
    assert found[-1].parameters == ("head.weight", "head.bias")
    assert len(stages(truncate(_net("googlenet"), "conv3", 3))) == 4


def test_layer_names():
    assert layer_names(_net("lenet")) == ["features", *(f"features.{index}" for index in range(7))]
    names = layer_names(_net("vit_tiny_patch16_224"))
    assert {"blocks.0", "blocks.0.attn.qkv", "norm"} <= set(names)
    assert "head" not in names


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("resnet10t", "layer5", "unknown layer 'layer5'; did you mean layer4"),
        ("resnet10t", "fc", "unknown layer 'fc'"),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0.attn", r"is of the shape \[\d+, 4, 8\] for 2 images"),
        ("efficientvim_m1", "stages.1", r"the output of layer 'stages\.1' is no tensor"),
        ("vit_small_patch16_dinov3", "blocks.0", r"Eva cannot be cut at 'blocks\.0': .*rotary"),
        ("vit_tiny_patch16_224", "blocks.0.attn.attn_drop", "does not call its layer 'blocks.0.attn.attn_drop'"),
    ],
)
def test_layers_that_cannot_be_had(name, layer, message):
    model = _net(name)
    attributes = set(vars(model))
    with pytest.raises(UsageError, match=message):
        truncate(model, layer, 3)
    assert set(vars(model)) == attributes
    if "cut" not in message:
        with pytest.raises(UsageError, match=message):
            features_of(model, layer)


def test_a_card_with_an_unknown_layer(tmp_path):
    model = truncate(_net("resnet10t"), "layer1", 3)
    card = make_card(architecture="resnet10t", stages=("train",), arguments=NETS["resnet10t"])
    checkpoint.save(
        model, dataclasses.replace(card, build=dataclasses.replace(card.build, layer="layer9")), tmp_path / "m"
    )
    with pytest.raises(ArtefactError, match="m: unknown layer 'layer9'"):
        checkpoint.load(tmp_path / "m")


def test_where_channels_and_pixels_are_equally_many_the_network_decides():
    model = build("swin_tiny_patch4_window7_224", classes=3, channels=3, arguments=SWIN).eval()
    features = features_of(model, "patch_embed")  # [B, 8, 8, 8]
    assert isinstance(features, Features) and features.pool == "maps, channels last"
