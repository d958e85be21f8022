"""BatchNorm recalibration: pruning changes what flows through a network, so its running statistics are measured anew.

Only BatchNorm layers are in training mode, every image counts the same, the variance is the population's, and the data
are training images without augmentation; see zoo.training.loop.methods.norms.
"""

from __future__ import annotations

import dataclasses
import random
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from zoo.artefact.card import LineageEntry, advance, allow
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import code_commit, sha256_file
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages
from zoo.networks.checkpoint import load, save
from zoo.networks.stages import is_batch_norm
from zoo.training.evaluate import check_validation
from zoo.training.loop.distributed import pick_device
from zoo.training.loop.methods.norms import reestimate
from zoo.training.recipe import RecalibrateConfig
from zoo.training.stage import measured

__all__ = ["Recalibration", "batch_norms", "recalibrate", "recalibrate_model"]


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """What recalibration did."""

    layers: int
    images: int
    top1_before: float
    """On the validation images."""
    top1_after: float


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers that keep running statistics."""
    return [module for module in model.modules() if is_batch_norm(module)]


def recalibrate_model(model: nn.Module, images: DecodedImages, *, batch_size: int) -> int:
    """Measure every BatchNorm layer's mean and variance over `images`, in place; all else stays in evaluation mode.

    Returns:
        The number of layers.

    Raises:
        ArtefactError: the network has no BatchNorm.
        UsageError: fewer than two images in a batch, which have no variance.
    """
    if min(batch_size, len(images)) < 2:
        raise UsageError(
            f"recalibrate needs batches of at least 2 images, got {len(images)} images in batches of {batch_size}"
        )
    layers = batch_norms(model)
    if not layers:
        raise ArtefactError(
            f"{type(model).__name__} has no BatchNorm to recalibrate; LayerNorm computes its statistics from each image"
        )
    device = pick_device()
    reestimate(model.to(device), layers, images, order=range(len(images)), batch_size=batch_size, device=device)
    model.to("cpu")
    return len(layers)


def recalibrate(source: Path, target: Path, config: RecalibrateConfig, *, dataset: Dataset) -> Recalibration:
    """Recalibrate a checkpoint into another one, on at most `config.images` training images.

    Raises:
        ArtefactError: wrong stage, or a network without BatchNorm.
    """
    begin = time.perf_counter()
    model, card = load(source)
    allow(card, "recalibrate")
    check_validation(card, dataset)
    samples = list(dataset.splits["train"])
    # The classes stand one after the other in a split; a batch of one class has the wrong statistics.
    random.Random(0).shuffle(samples)
    images = DecodedImages(samples[: config.images], card.use.input)
    known = card.metrics("validation")
    if known is None or known.dataset != dataset.name:
        known = measured(model, card, dataset, test=False).metrics("validation")
    layers = recalibrate_model(model, images, batch_size=config.batch_size)
    entry = LineageEntry(
        stage="recalibrate",
        config=dataclasses.asdict(config),
        parent=sha256_file(source),
        commit=code_commit(),
        seconds=round(time.perf_counter() - begin, 1),
    )
    card = measured(model, advance(card, entry), dataset, test=False)
    after = card.metrics("validation")
    assert known is not None and after is not None
    done = Recalibration(layers=layers, images=len(images), top1_before=known.top1, top1_after=after.top1)
    entry = dataclasses.replace(entry, summary=dataclasses.asdict(done))
    save(model, dataclasses.replace(card, lineage=(*card.lineage[:-1], entry)), target)
    return done
