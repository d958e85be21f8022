"""Recovery: a short fine-tuning of the pruned network, taught by the unpruned one.

Distillation as in Hinton et al. 2015 (arXiv 1503.02531): KL divergence of the softened answers, times T squared,
beside cross-entropy with the labels. A large learning rate matters more than a long training (Renda et al. 2020,
arXiv 2003.02389; Le & Hua 2021, arXiv 2105.03193).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from zoo.artefact.card import LineageEntry, advance, allow
from zoo.base.errors import UsageError
from zoo.base.files import code_commit, sha256_file
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages, canvas
from zoo.networks.checkpoint import load, save
from zoo.training.evaluate import check_labels
from zoo.training.loop.distributed import pick_device
from zoo.training.loop.fit import FitReport, fit
from zoo.training.loop.losses import Loss
from zoo.training.loop.state import STATE
from zoo.training.recipe import RecoverConfig
from zoo.training.stage import measured

__all__ = ["distillation", "recover"]


def distillation(teacher: nn.Module, config: RecoverConfig) -> Loss:
    """The loss (1 - w) CE(labels) + w T^2 KL(teacher || student), both softened by T.

    Raises:
        UsageError: a weight outside [0, 1] or a temperature that is not positive.
    """
    weight, temperature, smoothing = config.distill, config.temperature, config.fit.label_smoothing
    if not 0 <= weight <= 1 or temperature <= 0:
        raise UsageError(
            f"recover.distill must be in [0, 1] and its temperature positive, got {weight} and {temperature}"
        )
    teacher = teacher.eval().requires_grad_(False)

    def loss(inputs: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hard = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        if weight == 0:
            return hard
        with torch.no_grad():
            wanted = functional.log_softmax(teacher(inputs) / temperature, dim=1)
        given = functional.log_softmax(logits / temperature, dim=1)
        soft = functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2
        return (1 - weight) * hard + weight * soft

    return loss


def recover(
    source: Path,
    teacher: Path,
    target: Path,
    config: RecoverConfig,
    *,
    dataset: Dataset,
    resume: bool = True,
    test: bool = True,
) -> FitReport:
    """Fine-tune a pruned checkpoint into another one; the best epoch on validation data counts, or none of them.

    Args:
        source: the pruned checkpoint.
        teacher: the unpruned one, with the same labels.
        target: checkpoint to write; its folder also gets the log and the state for resuming.
        config: how.
        dataset: what to train, validate and finally test on.
        resume: continue an interrupted recovery.
        test: read the test split at the end.

    Raises:
        ArtefactError: wrong stage.
        UsageError: other labels, or settings out of range.
        TrainingError: the loss is not finite.
    """
    model, card = load(source)
    allow(card, "recover")
    parent, parent_card = load(teacher)
    if parent_card.use.labels != card.use.labels or parent_card.use.input != card.use.input:
        raise UsageError(f"{teacher} has other labels or another input than {source}, so it cannot teach it")
    check_labels(card, dataset)
    spec = card.use.input
    report = fit(
        model,
        train=DecodedImages(dataset.splits["train"], canvas(spec)),
        validation=DecodedImages(dataset.splits["validation"], spec),
        spec=spec,
        config=config.fit,
        folder=target.parent,
        resume=resume,
        loss=distillation(parent.to(pick_device()), config),
        title=card.name,
        identity=[dataclasses.asdict(config), sha256_file(teacher)],
    )
    before = card.metrics("validation")
    if before and before.top1 > report.validation_top1:
        # No epoch was better than none: recalibration may leave little to recover.
        model, _ = load(source)
        report = dataclasses.replace(report, best_epoch=0, validation_top1=before.top1)
    entry = LineageEntry(
        stage="recover",
        config=dataclasses.asdict(config),
        parent=sha256_file(source),
        seed=config.fit.seed,
        commit=code_commit(),
        summary=dataclasses.asdict(report) | {"teacher": sha256_file(teacher)},
        seconds=report.seconds,
    )
    save(model, measured(model, advance(card, entry), dataset, test=test), target)
    (target.parent / STATE).unlink(missing_ok=True)
    return report
