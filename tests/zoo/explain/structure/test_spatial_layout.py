from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import UsageError
from zoo.explain.structure.spatial_layout import find_layer, layer_output, places_of
from zoo.networks.registry import build

SWIN = {"img_size": 32, "window_size": 2, "depths": [2, 2], "num_heads": [1, 2], "embed_dim": 8}


@pytest.mark.parametrize(
    ("name", "arguments", "layer", "layout", "prefix", "shape"),
    [
        ("resnet10t", {"channels": [8, 8, 16, 16]}, "layer1", "maps", 0, (8, 8, 8)),
        ("vit_tiny_patch16_224", TINY_VIT, "blocks.0", "tokens", 1, (48, 4, 4)),
        ("vit_tiny_patch16_224", TINY_VIT | {"reg_tokens": 3}, "blocks.0", "tokens", 4, (48, 4, 4)),
        ("vit_tiny_patch16_224", TINY_VIT, "patch_embed", "tokens", 0, (48, 4, 4)),
        ("swin_tiny_patch4_window7_224", SWIN, "layers.0", "maps, channels last", 0, (8, 8, 8)),
    ],
)
def test_outputs_become_maps_and_come_back(
    name: str, arguments: dict[str, object], layer: str, layout: str, prefix: int, shape: tuple[int, ...]
) -> None:
    model = build(name, classes=3, channels=3, arguments=arguments).eval()
    inputs = torch.rand(2, 3, 32, 32)
    output = layer_output(model, inputs, layer)
    places = places_of(model, layer, output, inputs)
    assert (places.layout, places.prefix) == (layout, prefix)
    maps = places.maps(output)
    assert maps.shape == (2, *shape)
    assert torch.equal(places.back(maps, output), output)


def test_patches_lie_row_by_row() -> None:
    model = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT).eval()
    inputs = torch.rand(1, 3, 32, 32)
    output = layer_output(model, inputs, "blocks.0")
    maps = places_of(model, "blocks.0", output, inputs).maps(output)
    assert torch.equal(maps[0, :, 1, 2], output[0, 1 + 1 * 4 + 2])


def test_says_what_is_no_layer_or_has_no_places() -> None:
    model = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT).eval()
    inputs = torch.rand(1, 3, 32, 32)
    with pytest.raises(UsageError, match=r"unknown layer 'bloks\.1'; did you mean blocks\.1"):
        find_layer(model, "bloks.1")
    with pytest.raises(UsageError, match=r"output of layer 'head' is \[1, 3\], expected maps"):
        places_of(model, "head", layer_output(model, inputs, "head"), inputs)
    model.add_module("idle", nn.Identity())
    with pytest.raises(UsageError, match="does not call its layer 'idle'"):
        layer_output(model, inputs, "idle")


def test_an_output_is_kept_from_what_works_in_place() -> None:
    model = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    assert layer_output(model, torch.tensor([[-1.0, 2.0]]), "0").tolist() == [[-1.0, 2.0]]
