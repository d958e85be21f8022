"""The learning-rate range test: what it suggests, and that it leaves no trace."""

from __future__ import annotations

import copy
import itertools
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import TrainingError, UsageError
from zoo.data.catalogue import open_dataset
from zoo.networks.stages import Freezing
from zoo.studies.lr_finder import Curve, RangeTest, draw, find_rate, range_test, suggest
from zoo.training.loop.fit import FitConfig
from zoo.training.recipe import LoraConfig, Run

LENET = Run(name="lenet", model="lenet", data="digits", images_per_split=100, train=FitConfig(batch_size=20))


def curve_of(losses) -> Curve:
    """One loss per tenth of a decade from 1e-7 on."""
    rates = tuple(10 ** (-7 + index / 10) for index in range(len(losses)))
    return Curve(rates=rates, losses=tuple(losses), smooth=tuple(losses))


def falling() -> Curve:
    """Flat at 2 up to 1e-4, a fall to 1 at 1e-2 that is steepest at 1e-3, then a rise."""
    logs = [-7 + index / 10 for index in range(61)]
    return curve_of(
        [
            2.0 if x <= -4 else 1.5 + 0.5 * math.cos(math.pi * (x + 4) / 2) if x <= -2 else 1 + 5 * (x + 2) ** 2
            for x in logs
        ]
    )


def test_suggestions_on_a_known_curve():
    found = suggest(falling())
    assert found.steepest == pytest.approx(1e-3, rel=0.01)
    assert found.minimum_tenth == pytest.approx(1e-3, rel=0.01)
    # From where a twentieth of the fall is done (10 ** -3.7) to the minimum (1e-2).
    assert found.valley == pytest.approx(10**-2.85, rel=0.05)


def test_one_spike_does_not_end_the_valley():
    losses = list(falling().smooth)
    losses[40] += 0.3
    assert suggest(curve_of(losses)).valley == pytest.approx(10**-2.85, rel=0.05)


@pytest.mark.parametrize("losses", [[1.0] * 20, [1.0 + 0.1 * index for index in range(20)], [1.0, 0.999, 0.998, 2.0]])
def test_nothing_to_suggest(losses):
    with pytest.raises(TrainingError, match=r"the loss does not fall between the rates 1e-07 and"):
        suggest(curve_of(losses))


class Noisy(nn.Module):
    """Buffers that move and a random step, to see that both are put back."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5))
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, images):
        return self.head(self.layers(images))


def state_of(model, optimizer):
    return copy.deepcopy(
        (
            model.state_dict(),
            optimizer.state_dict(),
            {name: parameter.grad for name, parameter in model.named_parameters()},
            [module.training for module in model.modules()],
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state(),
        )
    )


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def batches():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 1, 8, 8, generator=generator)
    return itertools.repeat((inputs, torch.arange(8) % 3))


def cross_entropy(inputs, logits, targets):
    random.random()
    np.random.rand()
    return nn.functional.cross_entropy(logits, targets)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("warm", [False, True])
def test_everything_is_put_back_bit_for_bit(name, warm):
    torch.manual_seed(0)
    model = Noisy()
    model.layers[1].eval()
    optimizer = {
        "adamw": torch.optim.AdamW(model.parameters(), lr=1e-3),
        "sgd": torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
    }[name]
    if warm:
        nn.functional.cross_entropy(model(next(batches())[0]), next(batches())[1]).backward()
        optimizer.step()
    before = state_of(model, optimizer)
    curve = range_test(model, optimizer, batches(), cross_entropy, RangeTest(steps=40), clip=1.0)
    assert same(before, state_of(model, optimizer))
    assert not same(curve.losses[0], curve.losses[-1]), "it did train meanwhile"
    again = range_test(model, optimizer, batches(), cross_entropy, RangeTest(steps=40), clip=1.0)
    assert again == curve


def test_also_after_an_error():
    model = Noisy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = state_of(model, optimizer)
    with pytest.raises(TrainingError, match="ran out after 3 of 20 steps"):
        range_test(model, optimizer, itertools.islice(batches(), 3), cross_entropy, RangeTest(steps=20))
    assert same(before, state_of(model, optimizer))


def test_it_stops_when_the_loss_explodes():
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def square(inputs, outputs, targets):
        return (outputs**2).mean()

    # Each step multiplies the weight by 1 - 2 rate: it diverges for rates above 1.
    ones = itertools.repeat((torch.ones(4, 1), torch.zeros(4)))
    curve = range_test(model, optimizer, ones, square, RangeTest(low=1e-3, high=1e3, steps=60))
    assert 1 < curve.rates[-1] < 100
    assert len(curve.rates) == len(curve.losses) == len(curve.smooth) < 60
    assert 1e-2 < suggest(curve).valley < 1


def test_groups_keep_their_factors():
    model = nn.Linear(2, 2)
    groups = [
        {"params": [model.weight], "factor": 1.0, "lr": 1.0},
        {"params": [model.bias], "factor": 10.0, "lr": 10.0},
    ]
    optimizer = torch.optim.SGD(groups)
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append([group["lr"] for group in o.param_groups]))
    source = itertools.repeat((torch.ones(2, 2), torch.tensor([0, 1])))
    range_test(model, optimizer, source, cross_entropy, RangeTest(low=1e-4, high=1e-2, steps=10))
    assert seen[0] == pytest.approx([1e-4, 1e-3])
    assert all(second == pytest.approx(10 * first) for first, second in seen)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 10.0]


def test_a_loss_that_is_not_finite_from_the_start():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    source = itertools.repeat((torch.full((2, 2), math.nan), torch.tensor([0, 1])))
    with pytest.raises(TrainingError, match="not finite before the first step"):
        range_test(model, optimizer, source, cross_entropy)


@pytest.mark.parametrize(
    "run",
    [
        LENET,
        Run(
            name="vit",
            model="vit_tiny_patch16_224",
            arguments=TINY_VIT,
            size=32,
            data="digits",
            images_per_split=60,
            lora=LoraConfig(rank=2, alpha=4.0),
            train=FitConfig(batch_size=20),
        ),
        Run(
            name="frozen",
            model="resnet10t",
            size=32,
            data="digits",
            images_per_split=60,
            train=FitConfig(batch_size=20, freeze=Freezing(stages=2), l2sp=0.01, head_factor=2.0),
        ),
    ],
    ids=lambda run: run.name,
)
def test_a_run_of_a_recipe(run):
    dataset = open_dataset("digits", per_split=run.images_per_split)
    curve = find_rate(run, dataset, None, RangeTest(low=1e-5, steps=40))
    found = suggest(curve)
    assert curve.smooth[0] == pytest.approx(math.log(10), rel=0.25), "ten labels, random first weights"
    assert 1e-5 < found.valley < 3
    assert find_rate(run, dataset, None, RangeTest(low=1e-5, steps=40)) == curve, "reproducible"


def test_the_picture(tmp_path):
    path = tmp_path / "lr.png"
    draw(falling(), suggest(falling()), path, title="a curve", current=1e-3)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 700
    first = path.read_bytes()
    draw(falling(), suggest(falling()), path, title="a curve", current=1e-3)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": 0.0}, "0 < --low < --high, got 0 and 10"),
        ({"low": 1.0, "high": 0.5}, "0 < --low < --high, got 1 and 0.5"),
        ({"steps": 9}, "--steps must be at least 10"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"stop": 1.0}, "stop must exceed 1"),
    ],
)
def test_impossible_ranges(changes, message):
    with pytest.raises(UsageError, match=message):
        RangeTest(**changes)
