"""The sizes that networks take, found without computing."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from tests.zoo.factories import TINY_VIT, make_input
from zoo.base.errors import UsageError
from zoo.base.size import height_and_width
from zoo.networks.cutting.truncate import truncate
from zoo.networks.registry import build
from zoo.networks.sizes import check_size, declared_size, run_on_shapes, smaller_size, smallest_input

SMALL = {"channels": [8, 8, 16, 16]}
PATCHES_OF_14 = TINY_VIT | {"dynamic_img_size": True, "patch_size": 14, "img_size": 56}


@pytest.mark.parametrize(
    ("name", "arguments", "smallest"),
    [
        # torchvision's own record: AlexNet_Weights.IMAGENET1K_V1.meta["min_size"] is 63
        ("alexnet", {"dense": 4}, 63),
        # timm: InceptionV3 wants 75, keras.applications documents the same
        ("inception_v3", {}, 75),
        ("cnn5", {"img_size": 32}, 32),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}, 32),
        ("lenet", {}, 28),
        ("test_maxvit", {}, 159),  # windows of 5 at a stride of 32, and a first stride that rounds up
        ("resnet10t", SMALL, 1),
        ("vit_tiny_patch16_224", TINY_VIT, 32),
        ("vit_tiny_patch16_224", TINY_VIT | {"dynamic_img_size": True}, 8),
        ("vit_tiny_patch16_224", TINY_VIT | {"dynamic_img_size": True, "img_size": 42, "patch_size": 14}, 14),
    ],
)
def test_smallest_inputs(name, arguments, smallest):
    assert smallest_input(name, arguments) == smallest
    model = build(name, classes=2, channels=3, arguments=arguments).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, smallest, smallest)).shape == (1, 2)
        if smallest > 1:
            with pytest.raises((RuntimeError, AssertionError)):
                model(torch.zeros(1, 3, smallest - 1, smallest - 1))


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("alexnet", {"dense": 4}, 96),
        ("cnn5", {}, 64),
        ("resnet10t", SMALL, (64, 32)),
        ("vit_tiny_patch16_224", TINY_VIT | {"img_size": (16, 48)}, (16, 48)),
        ("vit_tiny_patch16_224", TINY_VIT | {"dynamic_img_size": True}, (64, 24)),
        ("resnet10t", SMALL, 320),  # larger than pretrained, as everywhere where pooling is global
        ("vit_tiny_patch16_224", TINY_VIT, 32),
        ("vit_tiny_patch16_224", TINY_VIT | {"dynamic_img_size": True}, 64),
    ],
)
def test_sizes_that_fit(name, arguments, size):
    model = build(name, classes=2, channels=1, arguments=arguments).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_size(model, name, dataclasses.replace(make_input(32, "L"), size=height_and_width(size)))
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "arguments", "size", "message"),
    [
        (
            "vit_tiny_patch16_224",
            TINY_VIT,
            (32, 48),
            r"take 32 x 48 pixels \(height x width\): .* 32 x 32; set size=32, or .*arguments\.img_size=\[32,48\]$",
        ),
        (
            "vit_tiny_patch16_224",
            TINY_VIT | {"img_size": (48, 16)},
            (48, 32),
            r"built for 48 x 16; set size=\[48,16\], or build it for yours with --set arguments\.img_size=\[48,32\]$",
        ),
        ("lenet", {}, (28, 32), r"lenet does not take 28 x 32 pixels .*built for 28 x 28; set size=28$"),
        (
            "alexnet",
            {"dense": 4},
            40,
            r"alexnet does not take 40 x 40 pixels: it needs at least 63 pixels; raise `size`",
        ),
        ("cnn5", {}, 48, r"built for 64 x 64; set size=64, or build it for yours with --set arguments\.img_size=48"),
        ("cnn5", {}, 20, r"built for 64 x 64; set size=64 \(cnn5 .* needs at least 32 pixels"),
        ("lenet", {}, 32, r"lenet does not take 32 x 32 pixels: it is built for 28 x 28; set size=28$"),
        ("vit_tiny_patch16_224", TINY_VIT, 40, r"built for 32 x 32; set size=32, or .*arguments\.img_size=40"),
        (
            "vit_tiny_patch16_224",
            TINY_VIT | {"dynamic_img_size": True},
            36,
            r"does not take 36 x 36 pixels, though 8 would do: .*divisible.*; choose a multiple of its patch",
        ),
    ],
)
def test_sizes_that_do_not_fit(name, arguments, size, message):
    model = build(name, classes=2, channels=3, arguments=arguments)
    spec = dataclasses.replace(make_input(32), size=height_and_width(size))
    with pytest.raises(UsageError, match=message):
        check_size(model, name, spec)


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("cnn5", {"img_size": 48}, (48, 48)),
        ("vit_tiny_patch16_224", TINY_VIT | {"img_size": [32, 16]}, (32, 16)),
        ("resnet10t", {}, (176, 176)),  # timm's record of its weights
        ("googlenet", {}, (224, 224)),
    ],
)
def test_declared_sizes(name, arguments, size):
    assert declared_size(build(name, classes=2, channels=3, arguments=arguments)) == size


def test_a_truncated_network_declares_its_whole_size():
    whole = build("vit_tiny_patch16_224", classes=2, channels=3, arguments=TINY_VIT)
    model = truncate(whole, "blocks.0", 2)
    assert declared_size(model) == (32, 32)
    check_size(model, "vit_tiny_patch16_224", make_input(32))


def test_shapes_need_no_memory():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    # 2 x 4 x 10^10 values would be 320 GB.
    assert run_on_shapes(model, 3, (100_000, 100_000)).shape == (2, 4, 100_000, 100_000)
    assert model.training and model[1].num_batches_tracked == 0


class _Picky(nn.Module):
    """Looks at what it is given, which the meta device does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        count = int(images.new_ones(2).nonzero().shape[0])
        return self.head(images.mean(dim=(1, 2, 3))[:, None].repeat(1, count // 2))


def test_networks_that_look_at_values_run_on_the_cpu():
    assert run_on_shapes(_Picky(), 3, (4, 4)).device.type == "cpu"


def test_no_size_at_all():
    # Without pooling there is no vector that the classifier could read.
    with pytest.raises(UsageError, match="resnet10t took no square input of up to 1024 pixels"):
        smallest_input("resnet10t", SMALL | {"global_pool": ""})


@pytest.mark.parametrize(
    ("name", "arguments", "size", "scale", "smaller"),
    [
        ("resnet10t", SMALL, (224, 224), 0.86, (192, 192)),
        ("resnet10t", SMALL, (224, 320), 0.71, (160, 224)),
        ("resnet10t", SMALL, (32, 32), 0.86, (24, 24)),  # of strides of 8: of 32 there is nothing to round to
        ("vit_tiny_patch16_224", PATCHES_OF_14, (56, 56), 0.71, (42, 42)),
        ("vit_tiny_patch16_224", TINY_VIT, (32, 32), 0.86, None),
        ("cnn5", {"img_size": 32}, (32, 32), 0.71, None),
        ("lenet", {}, (28, 28), 0.86, None),
        ("resnet10t", SMALL, (1, 1), 0.71, None),
    ],
)
def test_smaller_sizes_are_whole_strides_that_the_network_takes(name, arguments, size, scale, smaller):
    model = build(name, classes=2, channels=3, arguments=arguments)
    spec = dataclasses.replace(make_input(32), size=size)
    assert smaller_size(model, spec, scale) == smaller
