"""Facts about architectures."""

from __future__ import annotations

import pytest

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import UsageError
from zoo.networks.describe import describe, lora_targets
from zoo.networks.own.cnn5 import Cnn5Arguments, macs_of, parameters_of
from zoo.networks.registry import build


def test_cnn5():
    found = describe("cnn5", ["filters=4", "arguments.kernel=[3, 3, 3, 3, 5]", "growth=equal"], classes=3, colour="L")
    arguments = Cnn5Arguments(filters=4, kernel=(3, 3, 3, 3, 5), growth="equal")
    assert found["arguments"] == {"filters": 4, "kernel": [3, 3, 3, 3, 5], "growth": "equal"}
    assert found["parameters"] == parameters_of(arguments, classes=3, channels=1)
    assert found["macs"] == macs_of(arguments, classes=3, channels=1)
    assert (found["size"], found["channels"], found["smallest"]) == ([64, 64], 1, 64)
    assert (found["classifier"], found["features"]) == (["head"], 256)
    assert found["stages"][-2:] == ["dense", "classifier"]
    assert found["lora_targets"] == {"fc": 1}


def test_a_vision_transformer():
    settings = [f"{key}={value}" for key, value in TINY_VIT.items()]
    found = describe("vit_tiny_patch16_224", settings, classes=3, colour="RGB")
    assert found["lora_targets"] == {"qkv": 2, "proj": 2, "fc1": 2, "fc2": 2}
    assert (found["size"], found["smallest"], found["features"]) == ([32, 32], 32, 48)
    assert "blocks.1.mlp.fc1" in found["layers"]


def test_targets_leave_out_the_classifier():
    assert lora_targets(build("resnet10t", classes=2, channels=3)) == {}


@pytest.mark.parametrize(
    ("name", "settings", "size", "message"),
    [
        ("cnn6", [], None, "unknown model 'cnn6'; did you mean .*cnn5"),
        ("cnn5", ["filters"], None, "--set expects KEY=VALUE like train.lr=0.001, got 'filters'"),
        ("cnn5", ["colour=red"], None, "unknown argument of cnn5 'colour'"),
        ("alexnet", ["dense=4"], 50, "needs at least 63 pixels"),
    ],
)
def test_wrong_questions(name, settings, size, message):
    with pytest.raises(UsageError, match=message):
        describe(name, settings, size=size, classes=2, colour="RGB")


def test_wrong_colour():
    with pytest.raises(UsageError, match="unknown colour 'rgb'"):
        describe("lenet", classes=2, colour="rgb")
