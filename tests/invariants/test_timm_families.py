"""One member of every family of timm's registry, from random weights to the answer of its exported file.

The normal run takes a handful of small ones; POCKETZOO_SOAK=1 takes all (an hour on one core).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.export import PARITY_TOLERANCE, export
from tests.zoo.factories import encode, make_card, make_input, picture
from zoo.artefact.predictor import Predictor
from zoo.networks import checkpoint
from zoo.networks.heads import reset_head
from zoo.networks.registry import build, classifier_width, count_macs
from zoo.networks.sizes import check_size


def through(name: str, arguments: dict[str, Any], size: int, folder: Path) -> None:
    """Build a network, train one step, save, load, export, and answer with the exported file."""
    torch.manual_seed(0)
    model = build(name, classes=3, channels=3, arguments=arguments).train()
    spec = make_input(size)
    check_size(model, name, spec)
    reset_head(model, 3)
    images, truth = torch.rand(4, *spec.shape), torch.arange(4) % 3
    loss = nn.functional.cross_entropy(model(images), truth)
    assert loss.item() == pytest.approx(np.log(3), rel=1e-5)  # a new classifier, with no part of the old one left
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.01).step()
    card = make_card(architecture=name, spec=spec, stages=("train",), arguments=arguments)
    card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, macs=count_macs(model, spec)))
    checkpoint.save(model, card, folder / "model.safetensors")
    loaded, card = checkpoint.load(folder / "model.safetensors")
    assert classifier_width(loaded) == 3
    with torch.inference_mode():
        wanted = model.eval()(images)
        assert wanted.isfinite().all() and torch.equal(loaded(images), wanted)
    export(folder / "model.safetensors", folder / "model.onnx")
    predictor = Predictor(folder / "model.onnx", threads=1)
    scale = max(1.0, float(wanted.abs().max()))
    assert np.abs(predictor.logits(images.numpy()) - wanted.numpy()).max() <= PARITY_TOLERANCE * scale
    (answer,) = predictor.predict([encode(picture())])
    assert len(answer.labels) == 3 and sum(answer.probabilities) == pytest.approx(1, abs=1e-4)
