"""Structured pruning: remove whole channels, heads and hidden units, so that the network really gets smaller.

In this package `couplings` finds which channels of which layers hang together, `proof` tries that out, `importance`
scores them, `widths` decides how many of each stay, `depth` which residual blocks go whole, and `planning` does it to a
network in memory; this is the stage from file to file.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from compress.prune.couplings import BLOCK
from compress.prune.cutting import Structure
from compress.prune.planning import Plan, Step, parts_for, reduce
from zoo.artefact.card import Card, Input, LineageEntry, advance, allow
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import code_commit, sha256_file
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages
from zoo.networks.checkpoint import heads_of, load, rebuild, save
from zoo.networks.shrink import dropped_blocks
from zoo.training.evaluate import check_validation
from zoo.training.recipe import PruneConfig
from zoo.training.stage import measured

__all__ = ["Plan", "Step", "plan", "prunable", "prune", "prune_model", "scoring_images"]


def plan(
    model: nn.Module, spec: Input | torch.Tensor, config: PruneConfig, *, images: DecodedImages | None = None
) -> Plan:
    """The plan that keeps the most within the goal.

    Args:
        model: stays as it is.
        spec: the network's input; or, for any module, an example [B, ...] of it, of which the shape is read.
        config: the goal; with an example neither `latency_ms` nor the importance `taylor`.
        images: labelled training images, which the importance `taylor` reads.

    Raises:
        UsageError: a goal that cannot be reached with the least widths (the nearest is named), or an importance that
            the network, an example for an input or the lack of images does not allow.
        ArtefactError: the network has couplings that this pruning does not understand, costs more than its couplings
            say, or has weights or gradients that are no numbers.
    """
    return reduce(model, spec, config.settled(labelled=images is not None), images)[1]


def prune_model(
    model: nn.Module, spec: Input | torch.Tensor, config: PruneConfig, *, images: DecodedImages | None = None
) -> tuple[nn.Module, Plan]:
    """A pruned copy of `model` that was run, and the plan that made it; arguments and errors as :func:`plan`.

    Any module that maps one tensor to others can be pruned; no artefact is needed::

        model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 30 * 30, 10))
        smaller, done = prune_model(model, torch.zeros(1, 3, 32, 32), PruneConfig(macs=0.5))
        print(f"{done.ratio:.0%} of the multiply-accumulates stay")
    """
    return reduce(model, spec, config.settled(labelled=images is not None), images)


def prunable(model: nn.Module, spec: Input | torch.Tensor) -> None:
    """Check that a network can be pruned; cheap enough (a few runs of it) to be done before hours of training.

    Raises:
        ArtefactError: it cannot; names the layer.
    """
    parts_for(Structure(model, spec), PruneConfig().settled(labelled=False))


def prune(
    source: Path, target: Path, config: PruneConfig, *, dataset: Dataset | None = None, name: str | None = None
) -> Plan:
    """Prune a checkpoint into another one.

    Args:
        source: checkpoint to read.
        target: checkpoint to write; it reloads from its header alone, which is checked before this returns.
        config: how much.
        dataset: its training images are what the importance `taylor` reads; its validation split measures the result.
        name: of the new artefact.

    Raises:
        ArtefactError: wrong stage (unmerged, exported), or a network that cannot be pruned or rebuilt.
        UsageError: see :func:`plan`.
    """
    begin = time.perf_counter()
    model, card = load(source)
    allow(card, "prune")
    if dataset:
        check_validation(card, dataset)
    images = scoring_images(dataset, card.use.input, config)
    pruned, done = prune_model(model, card.use.input, config, images=images)
    before = card.metrics("validation")
    entry = LineageEntry(
        stage="prune",
        config=dataclasses.asdict(config),
        parent=sha256_file(source),
        seed=config.seed,
        commit=code_commit(),
        summary={
            "importance": done.importance,
            "scope": done.scope,
            "macs_before": done.macs_before,
            "macs_after": done.macs_after,
            "macs_ratio": round(done.ratio, 4),
            "parameters_ratio": round(done.parameters_after / done.parameters_before, 4),
            "parts": len(done.steps),
            "blocks": sum(step.unit == BLOCK for step in done.steps),
            "kept": len(done.kept),
            "latency_ms": done.latency_ms,
            "top1_before": before.top1 if before else None,
        },
        seconds=round(time.perf_counter() - begin, 1),
    )
    card = _rebuilt(advance(card, entry, name=name), pruned, done)
    if dataset:
        card = measured(pruned, card, dataset, test=False)
        after = card.metrics("validation")
        assert after is not None
        entry = dataclasses.replace(entry, summary={**entry.summary, "top1_after": after.top1})
        card = dataclasses.replace(card, lineage=(*card.lineage[:-1], entry))
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / target.name
        save(pruned, card, draft)
        _check_reload(pruned, draft, card.use.input)
    save(pruned, card, target)
    return done


def scoring_images(dataset: Dataset | None, spec: Input, config: PruneConfig) -> DecodedImages | None:
    """The training images that an importance reads, in evaluation's preprocessing; None where it reads none.

    Raises:
        UsageError: the importance is `taylor` and there is no data set.
    """
    if config.settled(labelled=dataset is not None).importance != "taylor":
        return None
    if dataset is None:
        raise UsageError(
            "the importance taylor reads gradients over training images; name their data set with --data, "
            "or use --importance l2"
        )
    samples = list(dataset.splits["train"])
    random.Random(config.seed).shuffle(samples)
    return DecodedImages(samples[: config.images], spec)


def _rebuilt(card: Card, model: nn.Module, done: Plan) -> Card:
    original = heads_of(rebuild(card))
    heads = {name: count for name, count in heads_of(model).items() if count != original[name]}
    return dataclasses.replace(
        card,
        build=dataclasses.replace(card.build, heads=heads, dropped=dropped_blocks(model)),
        inform=dataclasses.replace(card.inform, macs=done.macs_after),
    )


def _check_reload(model: nn.Module, target: Path, spec: Input) -> None:
    again, _ = load(target)
    image = torch.rand(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not torch.equal(model.eval()(image), again(image)):
            raise ArtefactError(f"{target.name}: the pruned network does not come back from its file; it was not kept")
