"""Networks of any kind: what hangs together is found, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from compress.prune.cutting import Structure, _randomize
from tests.compress.prune.test_cutting import _doomed, _gap, _images
from tests.zoo.factories import TINY_VIT, make_input
from zoo.base.errors import ArtefactError
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
    _randomize(made)
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
        (Padded, (3, 8, 8), r"Padded cannot be pruned: removing the channels of first is not .*export .* unpruned"),
        (lambda: Between(_shuffled), (3, 8, 8), "the channels of first is not the same"),
        (lambda: Between(lambda x: x.flip(1)), (3, 8, 8), r"channels of first .*differ by"),
        (lambda: Between(lambda x: x.roll(1, 1)), (3, 8, 8), r"channels of first .*differ by"),
        (lambda: Between(lambda x: x - x.mean(1, keepdim=True)), (3, 8, 8), r"channels of first .*differ by"),
        (lambda: Between(lambda x: x.softmax(1)), (3, 8, 8), r"channels of first .*differ by"),
        (lambda: Between(lambda x: x[:, [1, 0, 3, 2, 5, 4, 7, 6]]), (3, 8, 8), r"channels of first"),
        (lambda: Between(nn.LayerNorm([8, 8, 8])), (3, 8, 8), "missed a coupling|channels of first"),
        (lambda: Between(lambda x: x), (4, 8, 8), r"Between cannot be pruned: it cannot be run .*expected input"),
        (Branching, (4,), "Branching cannot be pruned: light has no part in what it answers in evaluation"),
        (
            lambda: nn.TransformerEncoderLayer(16, 2, batch_first=True),
            (5, 16),
            r"self_attn \(MultiheadAttention\): its heads are not understood",
        ),
        (lambda: nn.Sequential(nn.Conv2d(4, 2, 1, groups=2), nn.Flatten()), (4, 3, 3), "2 groups that read several"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(4, 4, 1, groups=2), nn.Flatten()),
            (3, 3, 3),
            r"because of 1 \(ConvTranspose2d\): a transposed convolution in groups",
        ),
        (lambda: nn.Sequential(nn.GRU(4, 5)), (3, 4), r"0 \(GRU\): how its channels hang together is not known"),
    ],
)
def test_what_the_graph_gets_wrong_is_refused_by_name(
    model: Callable[[], nn.Module], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        Structure(model(), torch.zeros(2, *shape))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 32, "window_size": 2, "depths": [2, 2], "num_heads": [1, 2], "embed_dim": 8},
            r"SwinTransformer cannot be pruned because of layers.0.blocks.0.attn \(WindowAttention\)",
        ),
        (
            "coatnet_nano_rw_224",
            {"img_size": 32, "depths": [1, 1, 1, 1], "embed_dim": [32, 32, 32, 32], "stem_width": 16},
            r"MaxxVit cannot be pruned because of stages.2.blocks.0.attn \(Attention2d\)",
        ),
        ("ghostnet_050", {}, "GhostNet cannot be pruned: removing the channels of "),
        ("ecaresnet26t", {}, r"ResNet cannot be pruned because of .* \(Conv1d\): it slides over channels"),
        ("res2net50_26w_4s", {"layers": [1, 1, 1, 1]}, "ResNet cannot be pruned: removing the channels of layer1.0"),
    ],
)
def test_families_that_cannot_be_pruned(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        Structure(build(name, classes=3, channels=3, arguments=arguments), make_input(32))


def test_groups_that_would_not_stay_equally_wide() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.both, self.head = nn.Conv2d(8, 4, 1, groups=2), nn.Linear(4, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.both(torch.cat([self.one(images), self.two(images)], 1)).mean((2, 3)))

    with pytest.raises(ArtefactError, match=r"only some channels of the 2 groups of both hang together with one"):
        Structure(Halves(), torch.zeros(1, 3, 4, 4))
