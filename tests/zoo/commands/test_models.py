"""The commands about architectures."""

from __future__ import annotations

import json

import pytest

from tests.conftest import run_cli
from zoo.base.errors import UsageError


def test_one_architecture_as_a_table():
    text = run_cli("model", "cnn5", "--classes", "10", "--colour", "L", "--layers").output
    for part in (
        "1 x 64 x 64 pixels (smallest edge: 64)",
        "head: 256 features",
        "features.4, dense, classifier",
        "fc (1)",
    ):
        assert part in text
    # 9 x (1 x 32 + 32 x 64 + 64 x 128 + 128 x 256 + 256 x 512), biases, norms, 2 x 2 x 512 x 256 and 256 x 10
    assert f"{9 * 174_112 + 3 * 992 + 2048 * 256 + 256 + 2570:,}" in text
    assert "\nfeatures.0.0\n" in text


def test_one_architecture_as_json():
    short = json.loads(run_cli("model", "lenet", "--classes", "10", "--colour", "L", "--json").output)
    assert (short["parameters"], short["macs"]) == (28_938, 313_600 + 2_508_800 + 15_680)
    assert "layers" not in short
    assert json.loads(run_cli("model", "lenet", "--json", "--layers").output)["layers"][0] == "features"


def test_settings_and_size():
    found = json.loads(run_cli("model", "cnn5", "--set", "img_size=32", "--set", "activation=mish", "--json").output)
    assert (found["size"], found["arguments"]) == ([32, 32], {"img_size": 32, "activation": "mish"})
    with pytest.raises(UsageError, match="cnn5 does not take 16 x 16 pixels"):
        run_cli("model", "cnn5", "--size", "16")


def test_names():
    assert run_cli("models", "cnn").output == "cnn5\n"
    assert json.loads(run_cli("models", "*lenet", "--json").output) == ["googlenet", "lenet"]
    text = run_cli("models").output.splitlines()
    assert text[:4] == ["alexnet", "cnn5", "googlenet", "lenet"]
    assert len(text) == 61 and text[-1].endswith("print them with --all")
    assert len(run_cli("models", "--all").output.splitlines()) > 1000
    with pytest.raises(UsageError, match="unknown model 'lennet'; did you mean lenet"):
        run_cli("models", "lennet")
