from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from tests.zoo.factories import TINY_VIT, picture
from zoo.base.errors import UsageError
from zoo.explain.inside.guided import Guided, draw_guided, guided
from zoo.networks.registry import build

FIRST = np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.25]])
SECOND = np.array([[2.0, -1.0, 2.0], [-3.0, 3.0, 1.0]])
X = np.array([2.0, 0.5])


def by_hand(unit: int, *, cap: float = np.inf) -> np.ndarray:
    """Two layers with a ReLU each; Springenberg et al. 2015, figure 1c: keep what is positive both ways."""
    before = FIRST @ X
    after = SECOND @ np.clip(before, 0, cap)
    back = np.eye(2)[unit] * ((after > 0) & (after < cap))
    back = SECOND.T @ back
    back = np.maximum(back, 0) * ((before > 0) & (before < cap))
    return FIRST.T @ back


class Two(nn.Module):
    """The same network with its ReLUs written in several ways."""

    def __init__(self, first: Callable[[torch.Tensor], torch.Tensor], second: Callable[[torch.Tensor], torch.Tensor]):
        super().__init__()
        self.one, self.two = nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)
        self.one.weight.data, self.two.weight.data = (torch.tensor(w, dtype=torch.float32) for w in (FIRST, SECOND))
        self.first, self.second = first, second
        self.end = nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.end(self.second(self.two(self.first(self.one(images.flatten(1))))))


def image() -> torch.Tensor:
    return torch.tensor(X, dtype=torch.float32).reshape(1, 1, 1, 2)


def gradients(found: Guided) -> list[np.ndarray]:
    return [unit.gradient.ravel() for unit in found.units]


_reused = nn.ReLU(inplace=True)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.ReLU(), nn.ReLU()),
        (nn.ReLU(inplace=True), nn.ReLU(inplace=True)),
        (_reused, _reused),
        (functional.relu, torch.relu),
        (lambda x: functional.relu(x, inplace=True), lambda x: x.relu_()),
        (torch.relu_, torch.Tensor.relu),
    ],
    ids=["modules", "in place", "reused", "functions", "functions in place", "methods"],
)
def test_is_what_is_computed_by_hand(first: Callable, second: Callable) -> None:
    model = Two(first, second).eval()
    found = guided(model, image(), "end", units=[0, 1])
    assert found.relus == 2
    assert np.allclose(gradients(found), [by_hand(0), by_hand(1)], atol=1e-6)
    # The rule matters in this network: the plain gradient differs.
    inputs = image().requires_grad_()
    (plain,) = torch.autograd.grad(Two(nn.ReLU(), nn.ReLU())(inputs)[0, 0], inputs)
    assert not np.allclose(gradients(found)[0], plain.numpy().ravel(), atol=0.1)


def test_a_capped_relu_passes_nothing_above_its_cap() -> None:
    for cap, capped in ((6.0, nn.ReLU6(inplace=True)), (6.0, functional.relu6), (1.2, nn.Hardtanh(0.0, 1.2))):
        found = guided(Two(capped, capped).eval(), image(), "end", units=[0, 1])
        assert np.allclose(gradients(found), [by_hand(0, cap=cap), by_hand(1, cap=cap)], atol=1e-6)
    assert not np.allclose(by_hand(1, cap=1.2), by_hand(1))


class Skip(nn.Module):
    """y = a relu(x) + b x: what goes past the ReLU is no part of the rule."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.end = nn.ReLU(), nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1) * 1.0
        return self.end(-2.0 * self.act(x) - 3.0 * x)


def test_leaves_the_way_past_a_relu_alone() -> None:
    (gradient,) = gradients(guided(Skip(), image(), "end", units=[0]))
    assert gradient.tolist() == [-3.0, 0.0]


def test_takes_the_most_active_units_where_they_are_most_active() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())
    model[0].weight.data = torch.tensor([1.0, -1.0, 2.0]).reshape(3, 1, 1, 1)
    nn.init.zeros_(model[0].bias)
    inputs = torch.tensor([[0.0, 1.0], [3.0, -5.0]]).reshape(1, 1, 2, 2)
    found = guided(model, inputs, "1", most=2)
    assert [(unit.index, unit.place, unit.activation) for unit in found.units] == [(2, (1, 0), 6.0), (1, (1, 1), 5.0)]
    assert [unit.gradient.ravel().tolist() for unit in found.units] == [[0, 0, 2, 0], [0, 0, 0, -1]]
    assert (found.count, found.named) == (3, False)


def test_changes_nothing_of_the_network() -> None:
    model = build("resnet10t", classes=3, channels=1, arguments={"channels": [8, 8, 16, 16]}).eval()
    inputs = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        before = model(inputs)
    state, text = copy.deepcopy(model.state_dict()), repr(model)
    assert any(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))
    found = guided(model, inputs, "layer4", most=2)
    assert all(np.isfinite(unit.gradient).all() and unit.gradient.any() for unit in found.units)
    assert repr(model) == text
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(inputs), before)


@pytest.mark.parametrize(
    ("units", "layer", "message"),
    [
        ([99], "layer4", r"no unit 99, expected a number from 0 to 15"),
        ([-1], "layer4", r"no unit -1"),
        ([], "layer4", "no unit"),
        (None, "layr4", r"unknown layer 'layr4'; did you mean .*layer4.*explain summary"),
    ],
)
def test_says_what_does_not_exist(units: list[int] | None, layer: str, message: str) -> None:
    model = build("resnet10t", classes=3, channels=1, arguments={"channels": [8, 8, 16, 16]}).eval()
    with pytest.raises(UsageError, match=message):
        guided(model, torch.rand(1, 1, 32, 32), layer, units=units)


def test_refuses_a_network_without_relu_and_names_another_command() -> None:
    model = build("vit_tiny_patch16_224", classes=3, channels=1, arguments=TINY_VIT).eval()
    with pytest.raises(UsageError, match=r"VisionTransformer has no ReLU.*explain gradcam.*explain attention"):
        guided(model, torch.rand(1, 1, 32, 32), "blocks.1")


@pytest.mark.parametrize("channels", [1, 3])
def test_draws_one_page(tmp_path: Path, channels: int) -> None:
    model = build("lenet", classes=3, channels=channels).eval()
    found = guided(model, torch.rand(1, channels, 28, 28), "head", most=3)
    assert found.units[0].place is None
    labels = {0: "cat", 1: "dog", 2: "hen"}
    draw_guided(tmp_path / "g.png", found, picture(height=28, width=28), name="lenet", title="p", labels=labels)
    with Image.open(tmp_path / "g.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 200
