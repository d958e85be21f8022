"""Artefacts with random weights: the speed of a network, whole, pruned and quantized, before anything is trained."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from compress.export import export
from compress.prune.stage import prune
from compress.quantize.stage import quantize
from compress.recalibrate import batch_norms, recalibrate_model
from zoo.artefact.card import Build, Card, Inform, Use
from zoo.artefact.preprocess import encode_png
from zoo.base.errors import UsageError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH
from zoo.base.size import Size
from zoo.data.dataset import Sample
from zoo.data.decoded import DecodedImages
from zoo.networks.checkpoint import save
from zoo.networks.registry import build, count_macs, input_for
from zoo.networks.sizes import check_size
from zoo.training.recipe import PruneConfig, QuantizeConfig

__all__ = ["ShapesConfig", "make_artefacts", "noise"]


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """What to make of each architecture."""

    macs: float = 0.45
    """Share of the multiply-accumulates that pruning leaves."""
    round_to: int = PruneConfig.round_to
    """Widths stay multiples of this."""
    size: Size | None = None
    """Of the input; None: what the network was made for."""
    classes: int = 37
    images: int = 32
    """Noise images to calibrate with; speed does not depend on them."""

    def __post_init__(self) -> None:
        for name, low in (("classes", 2), ("images", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"--{name} must be at least {low}, got {getattr(self, name)}")


def make_artefacts(architecture: str, folder: Path, config: ShapesConfig) -> list[Path]:
    """An artefact and its pruned one, each exported and quantized.

    Random weights have nothing to rank, so that every group loses the same share (l2, scope `layer`); pruning of
    trained networks ranks over all groups and comes to other widths at the same multiply-accumulates.

    Args:
        architecture: a registered name.
        folder: where to write the two folders.
        config: the rest.

    Returns:
        The two folders, the unpruned one first.

    Raises:
        UsageError: unknown architecture, or a goal out of reach.
        ArtefactError: a network that cannot be pruned, exported or quantized.
    """
    spec = input_for(architecture, colour="RGB", size=config.size, photographs=True)
    torch.manual_seed(0)
    model = build(architecture, classes=config.classes, channels=spec.channels)
    check_size(model, architecture, spec)
    pictures = noise(config.images, spec.size)
    _settle(model, DecodedImages(pictures, spec))
    labels = tuple(f"class {number}" for number in range(config.classes))
    card = Card(
        name=architecture,
        build=Build(architecture=architecture),
        use=Use(labels=labels, input=spec),
        inform=Inform(parameters=0, bytes=0, macs=count_macs(model, spec), source="random"),
    )
    whole, smaller = folder / architecture, folder / f"{architecture}-pruned"
    save(model, card, whole / CHECKPOINT)
    pruning = PruneConfig(macs=config.macs, round_to=config.round_to, importance="l2", scope="layer")
    prune(whole / CHECKPOINT, smaller / CHECKPOINT, pruning, dataset=None, name=smaller.name)
    # Nothing is known of accuracy, so no budget keeps layers in float, and the file is written even where it is slower.
    quantizing = QuantizeConfig(keep="any", max_drop=100, images=config.images)
    for artefact in (whole, smaller):
        export(artefact / CHECKPOINT, artefact / GRAPH)
        quantize(artefact / GRAPH, artefact / INT8_GRAPH, quantizing, dataset=None, images=pictures)
    return [whole, smaller]


def noise(count: int, size: tuple[int, int]) -> list[Sample]:
    """Images [H, W, 3] of a size (height and width) and random colours, always the same, without labels."""
    random = np.random.default_rng(0)
    encoded = [encode_png(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]
    return [
        Sample(name=f"noise {number}", label=-1, digest=hashlib.sha256(data).hexdigest(), source=data)
        for number, data in enumerate(encoded)
    ]


def _settle(model: nn.Module, images: DecodedImages) -> None:
    """Give random BatchNorm layers the scale and statistics of trained ones: activations neither die nor explode.

    Residual branches often begin with a scale of zero, which would leave nothing to compute with.
    """
    norms = batch_norms(model)
    for norm in norms:
        if norm.affine:
            nn.init.ones_(norm.weight)
    if norms:
        recalibrate_model(model, images, batch_size=min(16, len(images)))
