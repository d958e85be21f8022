from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import UsageError
from zoo.explain.inside.filters import Filters, draw_filters, first_filters
from zoo.networks.registry import build


@pytest.mark.parametrize(
    ("name", "channels", "arguments", "layer", "shape"),
    [
        ("lenet", 1, {}, "features.0", (16, 1, 5, 5)),
        ("cnn5", 3, {"filters": 8, "dense": 16, "img_size": 32}, "features.0.0", (8, 3, 3, 3)),
        ("resnet10t", 3, {"channels": [8, 8, 16, 16]}, "conv1.0", (24, 3, 3, 3)),
        ("vit_tiny_patch16_224", 3, TINY_VIT, "patch_embed.proj", (48, 3, 8, 8)),
    ],
)
def test_first_layer(
    tmp_path: Path, name: str, channels: int, arguments: dict[str, object], layer: str, shape: tuple[int, ...]
) -> None:
    size = 28 if name == "lenet" else 32
    model = build(name, classes=3, channels=channels, arguments=arguments).eval()
    found = first_filters(model, torch.zeros(1, channels, size, size))
    assert (found.layer, found.weights.shape) == (layer, shape)
    assert np.array_equal(found.weights, model.get_submodule(layer).weight.detach().numpy())
    draw_filters(tmp_path / "f.png", found, name=name, most=5)
    with Image.open(tmp_path / "f.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 100


def test_the_heading_has_the_range_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headings: list[str] = []
    monkeypatch.setattr("zoo.explain.inside.filters.draw_panels", lambda *_, heading, **__: headings.append(heading))
    weights = np.array([[-0.2, 0.1], [0.05, 0.7]], dtype=np.float32).reshape(1, 1, 2, 2)
    draw_filters(tmp_path / "f.png", Filters(layer="conv", weights=weights), name="tiny")
    assert "weights 1 x 1 x 2 x 2 from -0.2 to 0.7; blue" in headings[0]


def test_a_network_without_filters_of_the_picture_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(UsageError, match=r"is 1 \(Linear\), expected a convolution of the image's 3 channels"):
        first_filters(model, torch.zeros(1, 3, 2, 2))
