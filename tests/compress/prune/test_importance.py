"""Tests of compress.prune.importance: every score against a computation by hand, on couplings of known layers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.nn import functional

from compress.prune import importance
from compress.prune.couplings import traced
from compress.prune.cutting import Cut, Part, Structure
from compress.prune.importance import IMPORTANCES, comparable, score, scores
from tests.zoo.factories import TINY_VIT, make_input, make_samples
from zoo.base.errors import UsageError
from zoo.data.decoded import DecodedImages, Normalise
from zoo.networks.registry import build

SPEC = make_input(8, "L")


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU, and two layers that read the same four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.left = nn.Conv2d(4, 5, 3, groups=1)
        self.right = nn.Linear(4 * 36, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = functional.relu(self.norm(self.conv(images)))
        return self.head(self.left(features).mean((2, 3))) + self.right(features.flatten(1))


def cut(path: str, name: str, total: int, repeat: int = 1) -> Cut:
    channels = tuple(range(total * repeat))
    return Cut(
        path=path,
        name=name,
        axis=None,
        total=len(channels),
        channels=channels,
        roots=tuple(c // repeat for c in channels),
    )


def part(units: tuple[tuple[int, ...], ...], kind: str = "channel") -> Part:
    return Part(name="conv", kind=kind, units=units)


SINGLES = part(((0,), (1,), (2,), (3,)))
PAIRS = part(((0, 2), (1, 3)))


def structure(model: nn.Module | None = None, *, normed: bool = True) -> Structure:
    torch.manual_seed(0)
    net = (model or Net()).eval()
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    found = [cut("conv", "out", 4), cut("left", "in", 4), cut("right", "in", 4, repeat=36)]
    if normed:
        found.append(cut("norm", "out", 4))
    return cast(Structure, SimpleNamespace(model=net, cuts=lambda part: found))


@pytest.mark.parametrize(("name", "power"), [("l1", 1), ("l2", 2)])
def test_norms_are_sums_over_all_coupled_layers(name: str, power: int) -> None:
    made = structure()
    net = cast(Net, made.model)
    wanted = torch.stack(
        [
            (
                net.conv.weight[channel].abs().pow(power).sum()
                + net.left.weight[:, channel].abs().pow(power).sum()
                + net.right.weight[:, channel * 36 : channel * 36 + 36].abs().pow(power).sum()
                + net.norm.weight[channel].abs().pow(power)
            )
            / 4
            for channel in range(4)
        ]
    )
    assert torch.allclose(score(made, SINGLES, name), wanted)
    assert torch.allclose(score(made, PAIRS, name), torch.stack([wanted[[0, 2]].mean(), wanted[[1, 3]].mean()]))


def test_fpgm_is_the_distance_to_the_other_filters() -> None:
    made = structure()
    filters = cast(Net, made.model).conv.weight.flatten(1)
    wanted = torch.stack([sum((one - other).norm() for other in filters) for one in filters])
    found = score(made, SINGLES, "fpgm")
    assert torch.allclose(found, wanted / wanted.mean())


def test_bn_is_the_scale_of_batch_norm() -> None:
    made = structure()
    assert torch.equal(score(made, SINGLES, "bn"), cast(Net, made.model).norm.weight.detach().abs())
    with pytest.raises(UsageError, match=r"channels of conv have none; use --importance l2"):
        score(structure(normed=False), SINGLES, "bn")


@pytest.mark.parametrize("layout", [SINGLES, PAIRS])
def test_taylor_is_the_square_of_centred_feature_times_gradient_of_each_image(layout: Part) -> None:
    made = structure()
    net, images = cast(Net, made.model), DecodedImages(make_samples(5, classes=3), SPEC)
    pixels = Normalise(SPEC, torch.device("cpu"))(torch.stack([images[index][0] for index in range(5)]))
    features = functional.relu(net.norm(net.conv(pixels))).detach()  # [5, 4, 6, 6]
    # The linear layer has a mean per position, since each is an input of its own there.
    centred = {"left": features - features.mean((0, 2, 3), keepdim=True), "right": features - features.mean(0)}
    wanted = torch.zeros(len(layout.units))
    for index in range(5):
        left, right = (features[index : index + 1].clone().requires_grad_() for _ in range(2))
        logits = net.head(net.left(left).mean((2, 3))) + net.right(right.flatten(1))
        functional.cross_entropy(logits / 4, images.labels[index : index + 1]).backward()
        moved = (centred["left"][index] * left.grad[0] + centred["right"][index] * right.grad[0]).sum((1, 2))
        for unit, channels in enumerate(layout.units):
            wanted[unit] += moved[list(channels)].sum().square() / 5
    net.zero_grad()
    (found,) = scores(made, [layout], "taylor", images=images)
    assert torch.allclose(found, wanted, rtol=1e-3)
    assert not net.conv._forward_pre_hooks
    assert not net.left._forward_pre_hooks
    assert net.conv.weight.grad is None


def test_without_centring_taylor_would_be_weight_times_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Euler: the sum of x dL/dx over a linear layer's input is that of its weights times their gradients."""
    made = structure()
    net, images = cast(Net, made.model), DecodedImages(make_samples(1, classes=3), SPEC)
    monkeypatch.setattr(importance._Tap, "changes", lambda tap: torch.cat(tap._moved))
    (found,) = scores(made, [SINGLES], "taylor", images=images)
    pixels = Normalise(SPEC, torch.device("cpu"))(images[0][0].unsqueeze(0))
    functional.cross_entropy(net(pixels) / 4, images.labels[:1]).backward()
    left = (net.left.weight * net.left.weight.grad).sum((0, 2, 3))
    right = (net.right.weight * net.right.weight.grad).view(3, 4, 36).sum((0, 2))
    assert torch.allclose(found, (left + right).detach().square(), rtol=1e-4)


def test_taylor_does_not_depend_on_the_size_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    images = DecodedImages(make_samples(7, classes=3), SPEC)
    (whole,) = scores(structure(), [SINGLES], "taylor", images=images)
    monkeypatch.setattr(importance, "_PIXELS", 3 * 64)
    (parts,) = scores(structure(), [SINGLES], "taylor", images=images)
    assert torch.allclose(whole, parts, rtol=1e-4)


def test_what_a_head_is_worth_is_seen_at_its_projection() -> None:
    model = build("vit_tiny_patch16_224", classes=3, channels=3, arguments=TINY_VIT).eval()
    with torch.no_grad():
        model.blocks[0].attn.proj.weight[:, 16:32] = 0  # the second of three heads
        model.blocks[1].attn.qkv.weight[2 * 48 + 5 :: 16] = 0  # the values of dimension 5 of every head
        model.blocks[1].attn.qkv.bias[2 * 48 + 5 :: 16] = 0
        for part in range(2):
            model.blocks[1].attn.qkv.weight[part * 48 + 5 : (part + 1) * 48 : 16] = 0
    made = Structure(model, make_input(32))
    images = DecodedImages(make_samples(4, classes=3), make_input(32))
    found = {
        (part.name, part.kind): one
        for part, one in zip(made.parts, scores(made, made.parts, "taylor", images=images), strict=True)
    }
    heads, dims = found["blocks.0.attn.proj", "head"], found["blocks.1.attn.proj", "head dimension"]
    assert (heads[1] == 0, heads[[0, 2]].min() > 0) == (True, True)
    assert (dims.argmin(), dims[5] < 1e-3 * dims.median()) == (5, True)


def test_taylor_sees_what_a_channel_is_worth() -> None:
    made = structure()
    net, images = cast(Net, made.model), DecodedImages(make_samples(8, classes=3), SPEC)
    with torch.no_grad():
        # Channel 2 is never read, channel 1 is always zero: neither can change the loss, whatever its weights.
        net.left.weight[:, 2] = 0
        net.right.weight[:, 2 * 36 : 3 * 36] = 0
        net.norm.weight.fill_(1)
        net.norm.bias.fill_(1)
        net.norm.weight[1] = 0
        net.norm.bias[1] = -1
    (found,) = scores(made, [SINGLES], "taylor", images=images)
    assert found[1] == found[2] == 0
    assert min(found[0], found[3]) > 0


def test_taylor_without_images_is_refused() -> None:
    with pytest.raises(UsageError, match="got none; name their data set with --data"):
        scores(structure(), [SINGLES], "taylor")
    with pytest.raises(UsageError, match="from gradients over images"):
        score(structure(), SINGLES, "taylor")


def test_random_is_seeded_and_differs_between_parts() -> None:
    made = structure()
    first = score(made, SINGLES, "random", seed=1)
    assert torch.equal(first, score(made, SINGLES, "random", seed=1))
    assert not torch.equal(first, score(made, SINGLES, "random", seed=2))
    other = Part(name="other", kind="channel", units=SINGLES.units)
    assert not torch.equal(first, score(made, other, "random", seed=1))


def test_a_grouped_convolution_reads_each_channel_in_its_own_group_only() -> None:
    net = nn.ModuleDict({"conv": nn.Conv2d(4, 6, 3, groups=2)})
    made = cast(Structure, SimpleNamespace(model=net, cuts=lambda part: [cut("conv", "in", 4)]))
    weight = net["conv"].weight  # [6, 2, 3, 3]: outputs 0 to 2 read inputs 0 and 1
    wanted = (
        torch.stack(
            [weight[:3, 0], weight[:3, 1], weight[3:, 0], weight[3:, 1]],
        )
        .square()
        .sum((1, 2, 3))
    )
    assert torch.allclose(score(made, SINGLES, "l2"), wanted)


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_norms_agree_with_torch_pruning_where_both_count_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = build("resnet10t", classes=3, channels=3).eval()
    made = Structure(model, make_input(32))
    theirs = tp.importance.GroupMagnitudeImportance(p=int(name[1]), normalizer=None)
    assert len(made.parts) > 5
    followed = traced(model, (3, 32, 32))
    for found in made.parts:
        layer = followed.model.get_submodule(found.name)
        function = followed.graph.get_pruner_of_module(layer).prune_out_channels
        wanted = theirs(followed.graph.get_pruning_group(layer, function, list(range(len(found.units)))))
        assert torch.allclose(score(made, found, name), wanted, rtol=1e-4)


def test_comparable_scores_keep_the_order_within_a_part() -> None:
    scored = [torch.tensor([1.0, 3.0]), torch.tensor([300.0, 100.0, 200.0]), torch.zeros(2)]
    found = comparable(scored, "l2", [1, 2, 3])
    assert [one.tolist() for one in found] == [[0.5, 1.5], [1.5, 0.5, 1.0], [0.0, 0.0]]
    found = comparable(scored, "taylor", [1, 100, 5])
    assert [one.tolist() for one in found] == [[1.0, 3.0], [3.0, 1.0, 2.0], [0.0, 0.0]]


def test_unknown_importances_list_close_ones() -> None:
    with pytest.raises(UsageError, match="did you mean l2"):
        score(structure(), SINGLES, "l22")
    assert sorted(IMPORTANCES) == ["bn", "fpgm", "l1", "l2", "random", "taylor"]
