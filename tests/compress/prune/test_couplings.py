"""Networks of any kind: what hangs together is found, or kept and named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress.prune.cutting import Structure
from compress.prune.proof import randomize
from tests.compress.prune.test_cutting import _doomed, _gap, _images
from tests.zoo.factories import TINY_VIT, make_card, make_input
from zoo.base.errors import ArtefactError
from zoo.networks import checkpoint
from zoo.networks.cutting.truncate import truncate
from zoo.networks.registry import build


class Custom(nn.Module):
    """A network as people write them, without any of timm's conventions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True))
        self.left = nn.Conv2d(12, 8, 3, padding=1)
        self.right = nn.Conv2d(12, 4, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.dense = nn.Linear(12 * 16, 10)
        self.head = nn.Linear(10, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)
        both = torch.cat([self.left(features), self.right(features)], 1)
        features = nn.functional.max_pool2d(features + self.depthwise(both), 2)
        return self.head(nn.functional.gelu(self.dense(features.flatten(1))))


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (Custom, {"stem.0": 12, "dense": 10}),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.ConvTranspose2d(8, 6, 3), nn.Flatten(), nn.Linear(6 * 64, 3)
            ),
            {"0": 8, "2": 6},
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 9), nn.Tanh(), nn.Linear(9, 3), nn.Softmax(1)), {"1": 9}),
        # A convolution per channel of the image, and no classifier but a pool: what is input or output stays.
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 7, 1), nn.Conv2d(7, 3, 1), nn.AdaptiveAvgPool2d(1)
            ),
            {"1": 7},
        ),
    ],
)
def test_any_module_with_an_example(model: Callable[[], nn.Module], parts: dict[str, int]) -> None:
    made = model().eval()
    randomize(made)
    structure = Structure(made, torch.zeros(1, 3, 8, 8))
    assert {part.name: len(part.units) for part in structure.parts} == parts
    gap, effect = _gap(structure, _doomed(structure.parts, 1), _images(made, (3, 8, 8)))
    assert gap < 1e-10 < effect


def test_a_network_cut_after_a_layer() -> None:
    whole = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT)
    structure = Structure(truncate(whole, "blocks.0", 3), make_input(32), embedding=True)
    assert [part.kind for part in structure.parts] == ["embedding", "head", "head dimension", "hidden unit"]


class Padded(nn.Module):
    """A shortcut that pads channels with zeros, which torch-pruning's graph does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.first(images)
        padded = nn.functional.pad(features, (0, 0, 0, 0, 8, 8))
        return self.head((self.second(features) + padded).mean((2, 3)))


class Between(nn.Module):
    """Something between two convolutions that mixes the first one's channels."""

    def __init__(self, act: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), act
        self.head = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.act(self.first(images))).mean((2, 3)))


class Branching(nn.Module):
    """Goes another way for dark images than for light ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.light, self.dark = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.first(images)
        return self.light(features) if images.mean() > 0 else self.dark(features)


def _shuffled(features: torch.Tensor) -> torch.Tensor:
    return features.view(len(features), 2, 4, 8, 8).transpose(1, 2).reshape(len(features), 8, 8, 8)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (Padded, (3, 8, 8), r"Padded cannot be pruned because of first: removing channels is not .*export .* unpruned"),
        (lambda: Between(lambda x: x), (4, 8, 8), r"Between cannot be pruned: it cannot be run .*expected input"),
        (Branching, (4,), "Branching cannot be pruned: light has no part in what it answers in evaluation"),
        (lambda: nn.Sequential(nn.Conv2d(4, 2, 1, groups=2), nn.Flatten()), (4, 3, 3), "2 groups that read several"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 1, groups=2), nn.Flatten()),
            (3, 3, 3),
            r"because of 1 \(ConvTranspose2d\): a transposed convolution in groups",
        ),
        (
            lambda: nn.Sequential(nn.Linear(4, 5), nn.GRU(5, 5)),
            (3, 4),
            r"1 \(GRU\): how the channels of recurrent layers",
        ),
    ],
)
def test_what_leaves_nothing_to_prune_is_refused_by_name(
    model: Callable[[], nn.Module], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        Structure(model(), torch.zeros(2, *shape))


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (_shuffled, "not the same as masking"),
        (lambda x: x.flip(1), r"differ by"),
        (lambda x: x.roll(1, 1), r"differ by"),
        (lambda x: x - x.mean(1, keepdim=True), r"differ by"),
        (lambda x: x.softmax(1), r"differ by"),
        (lambda x: x[:, [1, 0, 3, 2, 5, 4, 7, 6]], "not the same as masking"),
        (nn.LayerNorm([8, 8, 8]), "RuntimeError: Given normalized_shape"),
    ],
)
def test_what_the_graph_gets_wrong_is_kept_by_name(act: Callable[[torch.Tensor], torch.Tensor], reason: str) -> None:
    structure = Structure(Between(act), torch.zeros(2, 3, 8, 8))
    (kept,) = structure.kept
    assert kept.layer == "first" and re.search(reason, kept.reason)
    assert [part.name for part in structure.parts] == ["second"]
    gap, effect = _gap(structure, _doomed(structure.parts, 1), _images(structure.model, (3, 8, 8)))
    assert gap <= 1e-5 * effect


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A family of which only a part can be pruned."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    size: int = 32
    parts: dict[str, int]
    kept: tuple[str, str]
    """Of the first layer that is kept, its name and why."""


_STRANGE = "its heads are not understood"
MIXED = {
    "CaiT": Mixed(
        name="cait_xxs24_224",
        arguments={"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        parts={"hidden unit": 3},
        kept=("blocks.0.attn (TalkingHeadAttn)", _STRANGE),
    ),
    "CoAtNet": Mixed(
        name="coatnet_nano_rw_224",
        arguments={"img_size": 32, "depths": [1, 1, 1, 1], "embed_dim": [32, 32, 32, 32], "stem_width": 16},
        parts={"channel": 8},
        kept=("stages.2.blocks.0.attn (Attention2d)", _STRANGE),
    ),
    "ECA-ResNet": Mixed(
        name="ecaresnet26t",
        arguments={"channels": [8, 8, 16, 16]},
        parts={"channel": 19},
        kept=("layer1.0.se.conv (Conv1d)", "it slides over channels as if they were neighbours"),
    ),
    "EVA": Mixed(
        name="eva02_tiny_patch14_224",
        arguments={"img_size": 28, "embed_dim": 16, "depth": 1, "num_heads": 2},
        size=28,
        parts={"hidden unit": 1},
        kept=("blocks.0.attn (EvaAttention)", _STRANGE),
    ),
    "GhostNet": Mixed(
        name="ghostnet_050", parts={"channel": 30}, kept=("conv_stem", "removing channels is not the same as masking")
    ),
    "LeViT": Mixed(
        name="levit_128s",
        arguments={"img_size": 64, "depth": [1, 1, 1], "embed_dim": [16, 16, 16], "num_heads": [1, 1, 1]},
        size=64,
        parts={"channel": 3, "hidden unit": 5},
        kept=("stages.0.blocks.0.attn (Attention)", _STRANGE),
    ),
    "Res2Net": Mixed(
        name="res2net50_26w_4s",
        arguments={"layers": [1, 1, 1, 1]},
        parts={"channel": 17},
        kept=("layer1.0.conv1", "removing channels is not the same as masking"),
    ),
    "Swin": Mixed(
        name="swin_tiny_patch4_window7_224",
        arguments={"img_size": 32, "window_size": 2, "depths": [2, 2], "num_heads": [1, 2], "embed_dim": 8},
        parts={"hidden unit": 4},
        kept=("layers.0.blocks.0.attn (WindowAttention)", _STRANGE),
    ),
    "TransformerEncoder": Mixed(
        name="encoder", parts={"hidden unit": 1}, kept=("self_attn (MultiheadAttention)", _STRANGE)
    ),
}


@pytest.mark.parametrize("family", MIXED)
def test_what_is_not_understood_is_kept_and_the_rest_pruned(family: str, tmp_path: Path) -> None:
    case = MIXED[family]
    torch.manual_seed(0)
    shape: tuple[int, ...] = (3, case.size, case.size)
    if case.name == "encoder":
        model: nn.Module = nn.TransformerEncoderLayer(16, 2, 12, batch_first=True)
        shape = (5, 16)
    else:
        model = build(case.name, classes=3, channels=3, arguments=case.arguments)
    structure = Structure(model.eval(), torch.zeros(2, *shape))
    kinds = [part.kind for part in structure.parts]
    assert {kind: kinds.count(kind) for kind in kinds} == case.parts
    assert structure.kept[0].layer == case.kept[0] and structure.kept[0].reason.startswith(case.kept[1])
    random = structure.copy()
    randomize(random.model)
    gap, effect = _gap(random, _doomed(random.parts, 1), _images(random.model, shape))
    # What computes in float32 inside rounds accordingly.
    assert gap <= 1e-5 * effect
    if case.name == "encoder":
        return
    for part, units in _doomed(structure.parts, 3).items():
        structure.remove(part, units)
    structure.finish()
    smaller = structure.model
    card = make_card(
        architecture=case.name, spec=make_input(case.size), stages=("train", "prune"), arguments=case.arguments
    )
    checkpoint.save(smaller, card, tmp_path / "model.safetensors")
    loaded, _ = checkpoint.load(tmp_path / "model.safetensors")
    images = _images(smaller, shape)
    with torch.inference_mode():
        assert torch.equal(loaded(images), smaller.eval()(images))


def test_a_search_that_would_not_end_is_given_up() -> None:
    # EfficientViM mixes pixels and channels in reshapes, where torch-pruning's lists of channels grow with every turn.
    arguments = {"embed_dim": [8, 8, 8], "depths": [1, 1, 1], "state_dim": [4, 4, 4]}
    model = build("efficientvim_m1", classes=3, channels=3, arguments=arguments)
    structure = Structure(model, make_input(64))
    assert any(kept.reason.startswith("no end of what its channels go together with") for kept in structure.kept)
    assert structure.parts


def test_groups_that_would_not_stay_equally_wide() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.both, self.middle, self.head = nn.Conv2d(8, 4, 1, groups=2), nn.Conv2d(4, 6, 1), nn.Linear(6, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            both = self.both(torch.cat([self.one(images), self.two(images)], 1))
            return self.head(self.middle(both).mean((2, 3)))

    structure = Structure(Halves(), torch.zeros(1, 3, 4, 4))
    assert [part.name for part in structure.parts] == ["both", "middle"]
    assert [kept.layer for kept in structure.kept] == ["one", "two"]
    assert structure.kept[0].reason.startswith("only some channels of the 2 groups of both hang together with it")
