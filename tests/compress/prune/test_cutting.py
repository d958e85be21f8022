"""Cutting is masking, in every family; see test_couplings.py for what is refused."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.prune.cutting import Part, Structure
from compress.prune.masking import mask
from compress.prune.proof import randomize
from tests.zoo.factories import TINY_VIT, make_card, make_input
from zoo.base.errors import UsageError
from zoo.networks import checkpoint
from zoo.networks.checkpoint import heads_of
from zoo.networks.registry import build
from zoo.networks.shrink import attentions


@dataclass(frozen=True, kw_only=True)
class Family:
    """A small member, and how many parts of which kind it has."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    size: int = 32
    embedding: bool = False
    parts: dict[str, int]


_ONE_BLOCK = TINY_VIT | {"depth": 1}
_TRANSFORMER = {"embedding": 1, "head": 1, "head dimension": 1, "hidden unit": 1}

FAMILIES = {
    "AlexNet": Family(name="alexnet", arguments={"dense": 16}, size=64, parts={"channel": 5, "hidden unit": 2}),
    "CNN5": Family(
        name="cnn5", arguments={"filters": 4, "dense": 8, "img_size": 32}, parts={"channel": 5, "hidden unit": 1}
    ),
    "ConvNeXt": Family(
        name="convnext_atto", arguments={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, parts={"channel": 8}
    ),
    "ConvNeXt, GRN": Family(
        name="convnextv2_atto", arguments={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, parts={"channel": 8}
    ),
    "DeiT": Family(name="deit_tiny_patch16_224", arguments=_ONE_BLOCK, embedding=True, parts=_TRANSFORMER),
    "DeiT, distilled": Family(
        name="deit_tiny_distilled_patch16_224", arguments=_ONE_BLOCK, embedding=True, parts=_TRANSFORMER
    ),
    "DenseNet": Family(
        name="densenet121", arguments={"growth_rate": 4, "block_config": [2, 2, 2, 2]}, parts={"channel": 20}
    ),
    "EfficientNet": Family(name="test_efficientnet", parts={"channel": 13}),
    "EfficientNet-Lite": Family(name="tf_efficientnet_lite0", parts={"channel": 24}),
    "GoogLeNet": Family(name="googlenet", parts={"channel": 57}),
    "GroupNorm": Family(
        name="resnet50_gn", arguments={"layers": [1, 1, 1, 1], "channels": [32, 32, 64, 64]}, parts={"channel": 9}
    ),
    "LeNet": Family(name="lenet", size=28, parts={"channel": 2}),
    "MNASNet": Family(name="mnasnet_050", parts={"channel": 25}),
    "MobileNetV2": Family(name="mobilenetv2_035", parts={"channel": 25}),
    "MobileNetV3": Family(name="mobilenetv3_small_050", parts={"channel": 26}),
    "ResNet": Family(name="resnet10t", arguments={"channels": [8, 8, 16, 16]}, parts={"channel": 11}),
    "ResNet, bottlenecks": Family(name="resnet26", arguments={"channels": [8, 8, 16, 16]}, parts={"channel": 21}),
    "ResNeXt": Family(
        name="resnext50_32x4d",
        arguments={"layers": [1, 1, 1, 1], "channels": [32, 32, 64, 64]},
        parts={"channel": 13},
    ),
    "ResNeXt, BYOB": Family(name="resnext26ts", parts={"channel": 23}),
    "SE-ResNet": Family(
        name="seresnet18", arguments={"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}, parts={"channel": 13}
    ),
    "VGG": Family(name="vgg11", arguments={"mlp_ratio": 0.01}, parts={"channel": 10}),
    "VGG, BatchNorm": Family(name="vgg11_bn", arguments={"mlp_ratio": 0.01}, parts={"channel": 10}),
    "ViT": Family(name="vit_tiny_patch16_224", arguments=_ONE_BLOCK, embedding=True, parts=_TRANSFORMER),
    "ViT, QK norm": Family(
        name="vit_tiny_patch16_224",
        arguments=_ONE_BLOCK | {"qk_norm": True},
        embedding=True,
        parts={"embedding": 1, "head": 1, "hidden unit": 1},
    ),
    "ViT, mean of tokens": Family(
        name="vit_tiny_patch16_224",
        arguments=_ONE_BLOCK | {"class_token": False, "global_pool": "avg", "init_values": 0.1, "reg_tokens": 1},
        embedding=True,
        parts=_TRANSFORMER,
    ),
}


def _build(family: Family) -> nn.Module:
    torch.manual_seed(0)
    channels = 1 if family.name == "lenet" else 3
    model = build(family.name, classes=3, channels=channels, arguments=family.arguments)
    randomize(model)
    return model.eval()


def _images(model: nn.Module, shape: Sequence[int], count: int = 3) -> torch.Tensor:
    like = next(model.parameters())
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(2)).to(like.dtype)


def _doomed(parts: Sequence[Part], seed: int) -> dict[Part, list[int]]:
    """A third of each part's units, at least one."""
    choose = random.Random(seed)
    return {part: choose.sample(range(len(part.units)), max(1, len(part.units) // 3)) for part in parts}


def _gap(structure: Structure, doomed: dict[Part, list[int]], images: torch.Tensor) -> tuple[float, float]:
    """The largest difference between cutting and masking, and what masking did to the answers."""
    cut, masked = structure.copy(), copy.deepcopy(structure.model)
    for part, units in doomed.items():
        cut.remove(part, units)
    cut.finish()
    with torch.no_grad():
        whole = masked(images)
        mask(masked, structure.cuts, doomed)
        wanted, found = masked(images), cut.model(images)
    return float((found - wanted).abs().max()), float((whole - wanted).abs().max())


@dataclass(frozen=True, kw_only=True)
class Case:
    """A family's member with its parts."""

    family: Family
    structure: Structure
    images: torch.Tensor


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    family = FAMILIES[request.param]
    spec = make_input(family.size, "L" if family.name == "lenet" else "RGB")
    model = _build(family)
    return Case(
        family=family,
        structure=Structure(model, spec, embedding=family.embedding),
        images=_images(model, spec.shape),
    )


def test_parts_of_every_family(case: Case) -> None:
    kinds = [part.kind for part in case.structure.parts]
    assert {kind: kinds.count(kind) for kind in kinds} == case.family.parts
    for part in case.structure.parts:
        channels = [channel for unit in part.units for channel in unit]
        assert sorted(channels) == list(range(len(channels)))
        assert len({len(unit) for unit in part.units}) == 1
        assert part.name in dict(case.structure.model.named_modules())


@pytest.mark.parametrize("kind", ["channel", "hidden unit", "head", "head dimension", "embedding"])
def test_cutting_is_masking(case: Case, kind: str) -> None:
    parts = [part for part in case.structure.parts if part.kind == kind]
    if not parts:
        assert kind not in case.family.parts
        return
    gap, effect = _gap(case.structure, _doomed(parts, 1), case.images)
    assert gap <= 1e-9 * effect
    # Single parts, so that none hides behind what the others do.
    for part in random.Random(0).sample(parts, min(2, len(parts))):
        gap, effect = _gap(case.structure, _doomed([part], 2), case.images)
        assert gap <= 1e-8 * effect, part.name


def test_comes_back_from_its_file(case: Case, tmp_path: Path) -> None:
    family, twin = case.family, case.structure.copy()
    for part, units in _doomed(twin.parts, 3).items():
        twin.remove(part, units)
    twin.finish()
    model = twin.model.float()
    colour = "L" if family.name == "lenet" else "RGB"
    card = make_card(
        architecture=family.name,
        spec=make_input(family.size, colour),
        stages=("train", "prune"),
        arguments=family.arguments,
    )
    whole = heads_of(case.structure.model)
    heads = {name: count for name, count in heads_of(model).items() if count != whole[name]}
    card = dataclasses.replace(card, build=dataclasses.replace(card.build, heads=heads))
    checkpoint.save(model, card, tmp_path / "model.safetensors")
    loaded, _ = checkpoint.load(tmp_path / "model.safetensors")
    with torch.inference_mode():
        assert torch.equal(loaded(case.images.float()), model(case.images.float()))
    for (name, one), (_, other) in zip(model.named_modules(), loaded.named_modules(), strict=True):
        for key in ("groups", "in_channels", "out_channels", "num_features", "normalized_shape", "num_heads", "scale"):
            assert getattr(one, key, None) == getattr(other, key, None), (name, key)
    # What came back can be cut again.
    again = Structure(loaded, card.use.input, embedding=family.embedding)
    assert 1 <= len(again.parts) <= len(twin.parts)


def test_a_plain_channel_by_hand() -> None:
    """Without BatchNorm's weight, bias and what follows, a channel of a residual stage is nothing."""
    model = build("resnet10t", classes=3, channels=3, arguments={"channels": [8, 8, 16, 16]}).double().eval()
    structure = Structure(model, make_input(32))
    (part,) = (part for part in structure.parts if part.name == "layer1.0.conv1")
    images, block = _images(model, (3, 32, 32)), model.layer1[0]
    with torch.no_grad():
        # timm starts a block's last norm at zero.
        nn.init.uniform_(block.bn2.weight)
        before = model(images)
        block.bn1.weight[[1, 6]] = 0
        block.bn1.bias[[1, 6]] = 0
        wanted = model(images)
        structure.remove(part, [1, 6])
        structure.finish()
        assert block.conv1.weight.shape == (6, 64, 3, 3)
        assert block.conv2.weight.shape == (8, 6, 3, 3)
        assert block.bn1.num_features == len(block.bn1.running_var) == 6
        assert (model(images) - wanted).abs().max() < 1e-12 < (before - wanted).abs().max()


def test_grouped_convolutions_keep_their_groups_by_hand() -> None:
    model = build("resnext50_32x4d", classes=3, channels=3, arguments={"layers": [1, 1, 1, 1]}).double().eval()
    structure = Structure(model, make_input(32))
    parts = {part.name: part for part in structure.parts}
    reads, makes = parts["layer1.0.conv1"], parts["layer1.0.conv2"]
    # 128 channels in 32 groups of 4: the unit is an offset, the same in every group.
    assert reads.units == makes.units == tuple(tuple(range(offset, 128, 4)) for offset in range(4))
    images, block = _images(model, (3, 32, 32)), model.layer1[0]
    with torch.no_grad():
        nn.init.uniform_(block.bn3.weight)
        whole = model(images)
        block.bn1.weight[1::4] = 0
        block.bn1.bias[1::4] = 0
        for offset in (0, 3):
            block.bn2.weight[offset::4] = 0
            block.bn2.bias[offset::4] = 0
        wanted = model(images)
        structure.remove(reads, [1])
        structure.remove(makes, [0, 3])
        structure.finish()
        assert (block.conv2.groups, block.conv2.in_channels, block.conv2.out_channels) == (32, 96, 64)
        assert block.conv2.weight.shape == (64, 3, 3, 3)
        assert (model(images) - wanted).abs().max() < 1e-12 < (whole - wanted).abs().max()


@pytest.mark.parametrize("fused", [True, False])
def test_heads_and_their_dimensions_by_hand(fused: bool) -> None:
    model = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=_ONE_BLOCK)
    randomize(model)
    attention = model.eval().blocks[0].attn
    attention.fused_attn = fused
    structure = Structure(model, make_input(32))
    heads, dimensions = (next(p for p in structure.parts if p.kind == kind) for kind in ("head", "head dimension"))
    assert len(heads.units) == 3 and heads.units[1] == tuple(range(16, 32))
    assert len(dimensions.units) == 16 and dimensions.units[2] == (2, 18, 34)
    images = _images(model, (3, 32, 32))
    with torch.no_grad():
        whole = model(images)
        for part in range(3):  # queries, keys, values
            for head in range(3):
                for dimension in range(16):
                    if head == 1 or dimension in (2, 15):
                        row = part * 48 + head * 16 + dimension
                        attention.qkv.weight[row] = 0
                        attention.qkv.bias[row] = 0
        wanted = model(images)
        # In either order: what was removed first does not shift what the other means.
        for order in ((heads, [1]), (dimensions, [15, 2])), ((dimensions, [2, 15]), (heads, [1])):
            twin = structure.copy()
            for part, units in order:
                twin.remove(part, units)
            twin.finish()
            twin.finish()
            smaller = twin.model.blocks[0].attn
            assert (smaller.num_heads, smaller.head_dim, smaller.attn_dim, smaller.scale) == (2, 14, 28, 14**-0.5)
            assert smaller.qkv.weight.shape == (84, 48) and smaller.proj.weight.shape == (48, 28)
            assert (twin.model(images) - wanted).abs().max() < 1e-12 < (whole - wanted).abs().max()


def test_the_embedding_narrows_everywhere() -> None:
    model = build("deit_tiny_distilled_patch16_224", classes=3, channels=3, arguments=_ONE_BLOCK)
    structure = Structure(model, make_input(32), embedding=True)
    (part,) = (part for part in structure.parts if part.kind == "embedding")
    structure.remove(part, range(0, 48, 2))
    structure.finish()
    assert (model.embed_dim, model.num_features, model.head_hidden_size) == (24, 24, 24)
    assert model.cls_token.shape == model.dist_token.shape == (1, 1, 24)
    assert model.pos_embed.shape == (1, 18, 24)
    assert model.head.in_features == model.head_dist.in_features == 24
    assert model.norm.normalized_shape == (24,)
    assert model.blocks[0].attn.num_heads == 3 and model.blocks[0].attn.head_dim == 16
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_building_changes_nothing() -> None:
    model = build("resnet10t", classes=3, channels=3, arguments={"channels": [8, 8, 16, 16]}).train()
    model.layer1.eval()
    model.conv1[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    wanting = [parameter.requires_grad for parameter in model.parameters()]
    with torch.no_grad():
        structure = Structure(model, make_input(32))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == wanting
    twin = structure.copy()
    twin.remove(twin.parts[0], [0, 1])
    assert twin.model.conv1[0].weight.shape[0] == model.conv1[0].weight.shape[0] - 2
    assert not twin.model.conv1[0].weight.requires_grad and twin.model.conv1[3].weight.requires_grad
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_norms_keep_their_order_when_little_is_left() -> None:
    # torch-pruning 1.6.1 takes a LayerNorm's indices from a set, whose order is that of a hash table.
    model = nn.Sequential(nn.Linear(4, 48), nn.LayerNorm(48), nn.Linear(48, 3)).eval()
    structure = Structure(model, torch.zeros(1, 4))
    (part,) = structure.parts
    assert (part.name, part.kind, len(part.units)) == ("0", "hidden unit", 48)
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(48.0))
    structure.remove(part, [unit for unit in range(48) if unit not in (5, 40)])
    structure.finish()
    assert model[1].weight.tolist() == [5.0, 40.0]


def test_remove_refuses_what_cannot_be_left() -> None:
    structure = Structure(_build(FAMILIES["ViT"]), make_input(32))
    part = structure.parts[0]
    assert (part.name, part.kind) == ("blocks.0.attn.proj", "head")
    with pytest.raises(UsageError, match=r"removing 3 of 3 units \(head\) would leave 0; leave a multiple of 1"):
        structure.remove(part, [0, 1, 2])
    with pytest.raises(UsageError, match=r"blocks.0.attn.proj has 3 units \(head\), got the indices \[0, 3\]"):
        structure.remove(part, [3, 0])
    assert attentions(structure.model)["blocks.0.attn"].qkv.out_features == 144
