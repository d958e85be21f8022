from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.zoo.factories import TINY_VIT, picture
from zoo.explain.inside.features import draw_features, feature_maps, strongest
from zoo.networks.registry import build


def test_the_strongest_channels_have_the_largest_mean_magnitude() -> None:
    maps = np.array([[[1.0, 1.0]], [[-5.0, 0.0]], [[0.0, 0.0]], [[2.0, -2.0]]], dtype=np.float32)
    assert strongest(maps, 3).tolist() == [1, 3, 0]
    assert strongest(maps, 9).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(
    ("name", "arguments", "layer", "maps", "prefix"),
    [
        ("resnet10t", {"channels": [8, 8, 16, 16]}, "layer1", (8, 8, 8), 0),
        ("vit_tiny_patch16_224", TINY_VIT, "blocks.1", (48, 4, 4), 1),
    ],
)
def test_maps_of_a_layer(
    tmp_path: Path, name: str, arguments: dict[str, object], layer: str, maps: tuple[int, ...], prefix: int
) -> None:
    model = build(name, classes=3, channels=1, arguments=arguments).eval()
    found = feature_maps(model, torch.rand(1, 1, 32, 32), layer)
    assert (found.maps.shape, found.prefix) == (maps, prefix)
    draw_features(tmp_path / "m.png", found, picture(height=32, width=32), name=name, title="p", most=6)
    with Image.open(tmp_path / "m.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 200
