"""The frozen part and the rest compute what the network does, learn what it learns, and leave it as it is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import UsageError
from zoo.networks.cutting.cut import CutError, cut_bytes, cut_network
from zoo.networks.lora import add_lora
from zoo.networks.registry import build, classifier

TINY_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 12,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 4],
}
FAMILIES: dict[str, dict[str, Any]] = {
    "cait_xxs24_224": {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "convnext_atto": {"depths": [1, 1, 2, 1], "dims": [16, 24, 32, 40], "drop_path_rate": 0.2},
    "deit_tiny_distilled_patch16_224": TINY_VIT,
    "densenet121": {"block_config": [2, 2], "growth_rate": 8, "bn_size": 2},
    "lenet": {},
    "mobilenetv3_small_050": {"drop_rate": 0.3},
    "resnet10t": {},
    "resnet26": {"drop_rate": 0.3},
    "seresnext26d_32x4d": {"layers": [1, 1, 1, 1]},
    "swin_tiny_patch4_window7_224": TINY_SWIN,
    "swinv2_tiny_window8_256": TINY_SWIN,
    "tf_efficientnet_lite0": {"drop_path_rate": 0.2},
    "vit_tiny_patch16_224": TINY_VIT | {"drop_rate": 0.2, "attn_drop_rate": 0.1, "drop_path_rate": 0.2},
}
CUTS = ("head", "late", "middle", "norms")


def make(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    model = build(name, classes=3, channels=3, arguments=FAMILIES.get(name, {}) | arguments)
    with torch.no_grad():
        for parameter in model.parameters():  # gains of zero, as timm draws some, would hide a mistake
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def images(count: int = 2, size: int = 32, *, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def size_of(name: str) -> int:
    return 28 if name == "lenet" else 32


def chosen(model: nn.Module, cut: str) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    head = set(classifier(model).parameters())
    if cut == "head":
        return [name for name, parameter in model.named_parameters() if parameter in head]
    if cut == "norms":
        return [name for name in names if "norm" in name or "bn" in name] or names
    return names[len(names) * {"late": 3, "middle": 2}[cut] // 4 :]


def gradients(model: nn.Module, names: Sequence[str], logits: torch.Tensor) -> dict[str, torch.Tensor]:
    labels = torch.arange(len(logits)) % 3
    parameters = dict(model.named_parameters())
    loss = nn.functional.cross_entropy(logits, labels)
    found = torch.autograd.grad(loss, [parameters[name] for name in names], allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_parts_do_what_the_whole_does(name: str, cut: str) -> None:
    model = make(name)
    trainable = chosen(model, cut)
    model.requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name in trainable)
    found = cut_network(model, trainable, images(2, size_of(name)))

    model.eval()
    for count in (5, 1):
        batch = images(count, size_of(name), seed=count)
        features = found.frozen(batch)
        assert all(len(value) == count and not value.requires_grad for value in features)
        torch.testing.assert_close(found.rest(features), model(batch), rtol=0, atol=0)

    # Training: the frozen part is in evaluation mode, the rest draws the same dropout from the same seed.
    model.train()
    in_rest = set(found.rest.modules())
    for module in found.frozen.modules():
        if module not in in_rest:
            module.eval()
    batch = images(6, size_of(name), seed=6)
    features = found.frozen(batch)
    torch.manual_seed(3)
    whole = gradients(model, trainable, model(batch))
    torch.manual_seed(3)
    parts = gradients(model, trainable, found.rest(features))
    assert set(parts) == set(whole)
    assert any(gradient.abs().max() > 0 for gradient in whole.values())
    for key, gradient in whole.items():
        torch.testing.assert_close(parts[key], gradient, rtol=1e-5, atol=1e-6)


def test_a_head_alone_needs_its_input_only() -> None:
    model = make("resnet10t")
    found = cut_network(model, ["fc.weight", "fc.bias"], images())
    (features,) = found.frozen(images(4))
    assert features.shape == (4, 512)
    assert found.worthwhile
    assert found.saved > 0.99
    assert cut_bytes(found, images(3)) == 512 * 4
    assert [name for name, _ in found.rest.named_parameters()] == ["graph.fc.weight", "graph.fc.bias"]


def test_the_cut_lies_before_the_first_stage_that_is_trained() -> None:
    model = make("resnet10t")
    found = cut_network(
        model, [name for name, _ in model.named_parameters() if name.startswith(("layer4", "fc"))], images()
    )
    assert found.cut == ("model_layer3",)
    assert cut_bytes(found, images()) == 256 * 2 * 2 * 4
    assert 0.1 < found.saved < 0.9


def test_a_normalised_value_is_computed_again_rather_than_kept_beside_its_source() -> None:
    model = make("vit_tiny_patch16_224")
    found = cut_network(model, ["blocks.1.attn.qkv.weight", "head.weight"], images())
    assert found.cut == ("model_blocks_0",)
    assert cut_bytes(found, images()) == 17 * 48 * 4


def test_training_from_the_first_layer_leaves_nothing_to_keep() -> None:
    model = make("lenet")
    found = cut_network(model, [name for name, _ in model.named_parameters()], images(2, 28))
    assert (found.cut, found.saved, found.worthwhile) == (("images",), 0.0, False)
    batch = images(2, 28)
    torch.testing.assert_close(found.frozen(batch)[0], batch)


def test_adapters_in_the_first_block_leave_little_to_keep() -> None:
    model = make("vit_tiny_patch16_224", drop_rate=0.0)
    add_lora(model, targets=("qkv", "fc1"), rank=2, alpha=4.0)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    found = cut_network(model, trainable, images())
    assert not found.worthwhile
    torch.testing.assert_close(found.rest.eval()(found.frozen(images(3))), model(images(3)))


def test_statistics_that_move_are_not_frozen() -> None:
    model = make("resnet10t")
    trainable = ["fc.weight"]
    found = cut_network(model, trainable, images(), live=["layer4.0.bn1"])
    assert set(found.cut) == {"model_layer4_0_conv1", "model_layer4_0_downsample"}
    everywhere = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    found = cut_network(model, trainable, images(), live=everywhere)
    assert not found.worthwhile
    before = model.get_buffer("layer4.0.bn1.running_mean").clone()
    found.rest.train()(found.frozen(images(4)))
    assert not torch.equal(model.get_buffer("layer4.0.bn1.running_mean"), before)


@pytest.mark.parametrize("name", ["resnet26", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_dropout_before_the_classifier_is_drawn_in_every_step(name: str) -> None:
    model = make(name)
    found = cut_network(model, chosen(model, "head"), images())
    features = found.frozen(images())
    model.train()
    assert not torch.equal(found.rest(features), found.rest(features))
    found.rest.eval()
    assert not model.training
    assert torch.equal(found.rest(features), found.rest(features))


def test_the_frozen_part_has_no_training_mode() -> None:
    model = make("vit_tiny_patch16_224").train()
    found = cut_network(model, ["head.weight"], images())
    assert torch.equal(found.frozen(images())[0], found.frozen(images())[0])
    norm = make("resnet10t").train()
    before = copy.deepcopy(norm.state_dict())
    cut_network(norm, ["fc.weight"], images()).frozen(images(4))
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    assert all(module.training for module in [*model.modules(), *norm.modules()])


def test_training_the_rest_trains_the_network() -> None:
    model = make("resnet10t")
    trainable = chosen(model, "late")
    found = cut_network(model, trainable, images())
    optimizer = torch.optim.SGD([parameter for name, parameter in model.named_parameters() if name in trainable], lr=1)
    before = copy.deepcopy(model.state_dict())
    features = found.frozen(images(4))
    nn.functional.cross_entropy(found.rest(features), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert set(trainable) <= changed
    assert all(name in trainable or "running" in name or "num_batches" in name for name in changed)
    model.eval()
    torch.testing.assert_close(found.rest(features), model(images(4)))


class Inplace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x)
        return self.head(self.tail(features).mean((2, 3)))

    def tail(self, features: torch.Tensor) -> torch.Tensor:
        return self.act(features * self.head.weight.sum() * 0 + features) + self.act(features)


def test_layers_that_work_in_place_leave_a_cache_alone() -> None:
    model = Inplace()
    found = cut_network(model, ["head.weight"], images())
    model.eval()
    features = found.frozen(images())
    kept = [value.clone() for value in features]
    found.rest(features)
    assert all(torch.equal(value, old) for value, old in zip(features, kept, strict=True))


class Tokens(nn.Module):
    """Shapes, a device and a number of windows per image cross the cut."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.mix = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x)
        batch, channels, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)  # [B, N, C]
        steps = torch.linspace(0, 1, 16).to(x.device)[:, None]
        tokens = self.mix(x)
        windows = (self.norm(tokens) + steps).reshape(batch * 4, -1, channels)  # [4 B, N / 4, C]
        pooled = windows.mean(1).view(batch, 4, channels)
        joined = torch.cat([self.token.expand(batch, -1, -1), pooled], dim=1)
        return self.head(joined.mean(1) * (height + width))


@pytest.mark.parametrize("first", ["token", "mix.weight", "norm.weight", "head.weight"])
def test_numbers_that_cross_the_cut_follow_the_batch(first: str) -> None:
    torch.manual_seed(0)
    model = Tokens().eval()
    found = cut_network(model, [first, "head.bias"], images(4))
    for count in (1, 2, 7):
        batch = images(count)
        torch.testing.assert_close(found.rest(found.frozen(batch)), model(batch))


class Stubborn(nn.Module):
    """Asks for values, which a graph does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        self.seen = x
        return self.second(x) if x.shape[1] == 3 and float(x.detach().sum()) > -1e9 else x


class Other(nn.Module):
    """Takes another way in training."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.second(x).abs() if self.training else self.second(x)


def around(block: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3), block, nn.Flatten(), nn.LazyLinear(3))


@pytest.mark.parametrize("kind", [Stubborn, Other])
def test_a_module_that_cannot_be_traced_stays_whole(kind: type[nn.Module]) -> None:
    model = around(kind())
    model(images())
    found = cut_network(model, ["1.second.weight"], images())
    assert found.cut == ("model_0",)
    assert not hasattr(model[1], "seen") or isinstance(model[1].seen, torch.Tensor)
    for mode in (True, False):
        model.train(mode)
        torch.testing.assert_close(found.rest(found.frozen(images(3))), model(images(3)))


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.body(x).mean((2, 3))
        return self.head(features - features.mean(0))


@pytest.mark.parametrize(
    ("model", "trainable", "message"),
    [
        (Stubborn(), ["second.weight"], "Stubborn cannot be cut: TraceError: symbolically traced variables"),
        (Other(), ["second.weight"], "Other cannot be cut: it works another way in training"),
        (Mixing(), ["head.weight"], "Mixing cannot be cut: what it makes of an image depends on the others"),
    ],
)
def test_a_network_that_cannot_be_cut_says_why_and_stays_as_it_is(
    model: nn.Module, trainable: list[str], message: str
) -> None:
    model.train()
    model.get_submodule(trainable[0].split(".")[0]).eval()
    handle = model.register_forward_hook(lambda *_: None)
    before = [(dict(vars(module)), module.training) for module in model.modules()]
    with pytest.raises(CutError, match=message):
        cut_network(model, trainable, images())
    assert [(dict(vars(module)), module.training) for module in model.modules()] == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert len(model._forward_hooks) == 1
    handle.remove()


def test_a_cut_network_stays_as_it_is() -> None:
    model = make("resnet10t").train()
    model.layer1.eval()
    model.conv1.requires_grad_(False)
    before = [(dict(vars(module)), module.training) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    cut_network(model, chosen(model, "late"), images())
    assert [(dict(vars(module)), module.training) for module in model.modules()] == before
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name, _ in model.named_parameters() if name.startswith("conv1.")]
    assert torch.equal(torch.get_rng_state(), generator)


def test_wrong_names() -> None:
    model = make("resnet10t")
    with pytest.raises(UsageError, match="nothing is trainable"):
        cut_network(model, [], images())
    with pytest.raises(UsageError, match=r"unknown parameter 'fc.wieght'; did you mean fc.weight"):
        cut_network(model, ["fc.wieght"], images())
    with pytest.raises(UsageError, match=r"unknown layer 'bn9'"):
        cut_network(model, ["fc.weight"], images(), live=["bn9"])
    distilled = nn.ModuleDict({"used": nn.Conv2d(3, 3, 1), "unused": nn.Conv2d(3, 3, 1)})
    distilled.forward = distilled["used"].forward  # type: ignore[method-assign]
    with pytest.raises(CutError, match="what is trained does not change what ModuleDict answers"):
        cut_network(distilled, ["unused.weight"], images())
