from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.invariants.test_stages import ARCHITECTURES
from tests.zoo.factories import TINY_VIT, picture
from zoo.base.errors import UsageError
from zoo.explain.inside.gradcam import default_layer, draw_heats, explain_labels, gradcam
from zoo.networks.registry import build


class Small(nn.Module):
    """Two 1 x 1 filters with an in-place ReLU, and a linear layer with a weight for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(inplace=True), nn.Linear(8, 2)
        self.conv.weight.data = torch.tensor([1.0, -2.0]).reshape(2, 1, 1, 1)
        self.head.weight.data = torch.tensor([[1.0, 2.0, 3.0, -1.0, 4.0, 0.0, -2.0, 1.0], [-1.0] * 4 + [1.0] * 4])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.conv(images)).flatten(1))


PIXELS = np.array([[1.0, -1.0], [2.0, -3.0]])


def test_a_cnn_by_hand() -> None:
    maps = np.maximum(np.stack([PIXELS, -2 * PIXELS]), 0)  # [2, 2, 2]
    inputs = torch.tensor(PIXELS, dtype=torch.float32).reshape(1, 1, 2, 2).repeat(2, 1, 1, 1)
    found = gradcam(Small(), inputs, [0, 1], "act")
    # Equation 1: the mean of the logit's gradient over the places, here of the linear layer's weights.
    for label, (first, second) in enumerate([((1 + 2 + 3 - 1) / 4, (4 + 0 - 2 + 1) / 4), (-1.0, 1.0)]):
        wanted = np.maximum(first * maps[0] + second * maps[1], 0)  # equation 2
        assert np.allclose(found[label], wanted, atol=1e-6)
    assert found[1].tolist() == [[0.0, 2.0], [0.0, 6.0]]


def test_one_forward_pass() -> None:
    model, calls = Small(), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    gradcam(model, torch.rand(1, 1, 2, 2), [0], "act")
    assert len(calls) == 1


def test_a_layer_that_is_not_called() -> None:
    model = Small()
    model.idle = nn.Conv2d(1, 2, 1)
    with pytest.raises(UsageError, match="Small does not call its layer 'idle'"):
        gradcam(model, torch.rand(1, 1, 2, 2), [0], "idle")


def test_what_works_in_place_afterwards_changes_nothing() -> None:
    inputs = torch.tensor(PIXELS, dtype=torch.float32).reshape(1, 1, 2, 2)
    before = np.stack([PIXELS, -2 * PIXELS])
    # Through the ReLU only places with a positive input have a gradient.
    weights = [(1.0 + 3.0) / 4, (0.0 + 1.0) / 4]
    wanted = np.maximum(weights[0] * before[0] + weights[1] * before[1], 0)
    assert np.allclose(gradcam(Small(), inputs, [0], "conv")[0], wanted, atol=1e-6)


class Tokens(nn.Module):
    """A class token that reads four patches with weights, as attention with fixed weights does."""

    num_prefix_tokens = 1

    def __init__(self, *, last: bool = False) -> None:
        super().__init__()
        self.norm1, self.block = nn.Identity(), nn.Identity()
        self.register_buffer("read", torch.tensor([0.5, 1.0, 2.0, 3.0, -1.0]))
        self.register_buffer("label", torch.tensor([[1.0, -1.0], [0.0, 2.0]]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = torch.stack([images.flatten(1), images.flatten(1) ** 2], dim=-1)  # [B, 4, 2]
        tokens = torch.cat([torch.ones(len(images), 1, 2), patches], dim=1)  # [B, 5, 2]
        tokens = self.norm1(tokens)
        first = (self.read[:, None] * tokens).sum(dim=1, keepdim=True)  # [B, 1, 2]
        tokens = self.block(torch.cat([first, tokens[:, 1:]], dim=1))
        return tokens[:, 0] @ self.label.T


def test_tokens_by_hand() -> None:
    values = np.array([[1.0, 2.0], [0.5, -1.0]])
    inputs = torch.tensor(values, dtype=torch.float32).reshape(1, 1, 2, 2)
    # Of the patches only: (1 + 2 + 3 - 1) / 4 of what the label reads from each of two channels.
    weights = 5 / 4 * np.array([1.0, -1.0])
    wanted = np.maximum(weights[0] * values + weights[1] * values**2, 0)
    assert np.allclose(gradcam(Tokens(), inputs, [0], "norm1")[0], wanted, atol=1e-6)
    assert wanted.any()


def test_takes_the_last_layer_whose_places_reach_the_answer() -> None:
    inputs = torch.rand(1, 1, 2, 2)
    assert default_layer(Tokens(), inputs) == "norm1"
    assert not gradcam(Tokens(), inputs, [0], "block").any()
    assert default_layer(Small(), torch.rand(1, 1, 2, 2)) == "act"


@pytest.mark.parametrize(
    ("name", "arguments", "layer"),
    [
        ("vit_tiny_patch16_224", TINY_VIT, "blocks.1.norm1"),
        ("vit_tiny_patch16_224", TINY_VIT | {"reg_tokens": 3}, "blocks.1.norm1"),
        ("vit_tiny_patch16_224", TINY_VIT | {"global_pool": "avg"}, "norm"),
        ("deit_tiny_distilled_patch16_224", TINY_VIT, "blocks.1.norm1"),
        ("resnet10t", {"channels": [8, 8, 16, 16]}, "layer2"),
        ("resnet26", {"channels": [8, 8, 16, 16]}, "layer2"),
        ("lenet", {}, "features.5"),
    ],
)
def test_the_layer_of_an_architecture(name: str, arguments: dict[str, object], layer: str) -> None:
    torch.manual_seed(0)
    size = 28 if name == "lenet" else 32
    model = build(name, classes=3, channels=1, arguments=arguments).eval()
    inputs = torch.rand(1, 1, size, size)
    assert default_layer(model, inputs) == layer
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name: str) -> None:
    size, arguments = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = build(name, classes=3, channels=1, arguments=arguments).eval()
    inputs = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(1))
    layer = default_layer(model, inputs)
    (heat,) = gradcam(model, inputs, [1], layer)
    assert heat.ndim == 2 and heat.size > 1
    assert np.isfinite(heat).all() and (heat >= 0).all()
    with torch.no_grad():
        before = model(inputs)
    assert torch.equal(model(inputs).detach(), before)


def test_is_a_sentence_where_it_cannot_be() -> None:
    model = build("lenet", classes=3, channels=1).eval()
    inputs = torch.rand(1, 1, 28, 28)
    with pytest.raises(UsageError, match=r"output of layer 'head' is \[1, 3\], expected maps"):
        gradcam(model, inputs, [0], "head")
    nn.init.zeros_(model.head.weight)
    with pytest.raises(UsageError, match="no layer with several places that its answer depends on; name one"):
        default_layer(model, inputs)


@pytest.mark.parametrize("count", [1, 5])
def test_pictures_of_labels(tmp_path: Path, count: int) -> None:
    torch.manual_seed(0)
    model = build("lenet", classes=3, channels=1).eval()
    shown = [(f"{n}.png", torch.rand(1, 1, 28, 28), picture(n, 28, 28)) for n in range(count)]
    heats = explain_labels(model, shown, ("cat", "dog", "hen"), layer="features.5", label=1, temperature=2.0)
    logits = model(shown[0][1])[0].detach().numpy() / 2
    assert heats[0].label == "dog"
    assert heats[0].probability == pytest.approx(float(np.exp(logits[1]) / np.exp(logits).sum()), rel=1e-5)
    assert heats[0].answer == ("cat", "dog", "hen")[int(logits.argmax())]
    draw_heats(tmp_path / "c.png", heats, name="lenet", layer="features.5")
    with Image.open(tmp_path / "c.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 150
