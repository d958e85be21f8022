"""Small exported networks that the tests of quantization are made from."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compress.export import export
from tests.zoo.factories import TINY_VIT, make_card, make_input
from zoo.networks import checkpoint
from zoo.networks.registry import build, classifier

__all__ = ["exported"]

_SIZES: Mapping[str, tuple[int, dict[str, Any]]] = {
    "cnn5": (32, {"filters": 8, "dense": 16, "img_size": 32}),
    "resnet10t": (32, {}),
    "tf_efficientnet_lite0": (32, {}),
    "vit_tiny_patch16_224": (32, TINY_VIT),
}


def exported(architecture: str, folder: Path) -> Path:
    """A random greyscale network with three labels as `folder`/model.onnx; each is exported only once."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    path.write_bytes(_export(architecture))
    return path


@functools.cache
def _export(architecture: str) -> bytes:
    size, arguments = _SIZES[architecture]
    torch.manual_seed(0)
    model = build(architecture, classes=3, channels=1, arguments=arguments)
    # timm draws EfficientNet's head so large that the logits of a random network are in the hundreds.
    for parameter in classifier(model).parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    card = make_card(architecture=architecture, spec=make_input(size, "L"), stages=("train",), arguments=arguments)
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "model.safetensors", Path(scratch) / "model.onnx"
        checkpoint.save(model, dataclasses.replace(card, name=architecture), source)
        export(source, target)
        return target.read_bytes()
