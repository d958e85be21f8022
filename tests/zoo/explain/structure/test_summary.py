"""A network's layers in numbers: they add up, and nothing is counted twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.invariants.test_families import FAMILIES
from tests.zoo.factories import TINY_VIT, make_input
from zoo.base.errors import UsageError
from zoo.explain.structure.summary import Layer, layers_of
from zoo.networks.registry import build, count_macs


def _named(layers: list[Layer]) -> dict[str, Layer]:
    return {layer.name: layer for layer in layers}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_of_every_family_add_up_to_the_card(name: str) -> None:
    family = FAMILIES[name]
    model = build(family.name, classes=3, channels=3, arguments=family.arguments)
    spec = make_input(family.size)
    layers = layers_of(model, spec)
    # What cards record as inform.macs and inform.parameters.
    assert sum(layer.macs for layer in layers) == count_macs(model, spec) > 0
    assert sum(layer.parameters for layer in layers) == sum(parameter.numel() for parameter in model.parameters())
    assert len({layer.name for layer in layers}) == len(layers) > 5
    for depth in (1, 2):
        groups = layers_of(model, spec, depth=depth)
        assert len(groups) <= len(layers)
        assert all(layer.name.count(".") < depth for layer in groups)
        for key in ("macs", "parameters"):
            assert sum(getattr(layer, key) for layer in groups) == sum(getattr(layer, key) for layer in layers)


def test_numbers_of_single_layers_by_hand() -> None:
    layers = _named(layers_of(build("lenet", classes=4, channels=1), (1, 28, 28)))
    convolutions = [layer for layer in layers.values() if layer.kind == "Conv2d"]
    linear = [layer for layer in layers.values() if layer.kind == "Linear"]
    first, last = convolutions[0], linear[-1]
    assert first.output is not None
    _, filters, height, width = first.output
    model = build("lenet", classes=4, channels=1)
    kernel = model.get_submodule(first.name)
    assert isinstance(kernel, nn.Conv2d)
    size = kernel.kernel_size[0] * kernel.kernel_size[1]
    assert first.macs == filters * height * width * size
    assert first.parameters == filters * (size + 1)
    assert last.output == (1, 4)
    assert last.parameters == last.macs + 4


def test_attention_belongs_to_its_module_and_what_passes_on_is_left_out() -> None:
    layers = _named(layers_of(build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT), (3, 32, 32)))
    # Two products of 17 x 17 tokens over 48 features: queries with keys, and weights with values.
    assert layers["blocks.0.attn"].macs == 2 * 17 * 17 * 48
    assert layers["blocks.0.attn"].parameters == 0
    assert layers["blocks.0.attn.qkv"].macs == 17 * 48 * 3 * 48
    assert layers["blocks.0.attn.qkv"].output == (1, 17, 3 * 48)
    assert layers[""].parameters == 48 + 17 * 48
    assert {"Identity", "Dropout"}.isdisjoint(layer.kind for layer in layers.values())


class Sharing(nn.Module):
    """Calls one layer twice, shares a weight with another that is never called, and returns a pair inside."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(8, 8, bias=False)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.twice.weight
        self.unused = nn.Linear(8, 3)
        self.pair = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.twice(self.twice(images[:, 0]))
        answer: torch.Tensor = self.pair(rows, rows, rows)[0]
        return answer


def test_layers_called_twice_shared_or_never() -> None:
    model = Sharing()
    layers = _named(layers_of(model, (1, 8, 8)))
    assert layers["twice"].macs == 2 * 8 * 8 * 8
    assert layers["twice"].parameters == 64
    assert "tied" not in layers
    assert (layers["unused"].output, layers["unused"].macs, layers["unused"].parameters) == (None, 0, 27)
    assert layers["pair"].output == (1, 8, 8)
    # Its own function uses the weights of this one.
    assert layers["pair.out_proj"].output is None
    assert sum(layer.macs for layer in layers.values()) == count_macs(model, (1, 8, 8))


def test_the_network_stays_as_it_is() -> None:
    model = build("resnet10t", classes=3, channels=3).train()
    next(iter(model.parameters())).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    layers_of(model, (3, 32, 32))
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()].count(False) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_trained_parameters_by_layer() -> None:
    model = build("lenet", classes=3, channels=1)
    names = {name for name, _ in model.named_parameters()}
    head = {name for name in names if name.startswith(list(model.named_parameters())[-1][0].rpartition(".")[0])}
    assert all(layer.trained is None for layer in layers_of(model, (1, 28, 28)))
    layers = layers_of(model, (1, 28, 28), trained=head)
    assert sum(layer.trained or 0 for layer in layers) == sum(model.get_parameter(name).numel() for name in head)
    assert [layer.trained == layer.parameters for layer in layers if layer.parameters].count(True) == 1


def test_a_depth_of_nothing() -> None:
    with pytest.raises(UsageError, match="--depth must be at least 1"):
        layers_of(build("lenet", classes=3, channels=1), (1, 28, 28), depth=0)
