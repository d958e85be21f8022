"""Recovery: a short fine-tuning of the pruned network, taught by the unpruned one.

Distillation as in Hinton et al. 2015 (arXiv 1503.02531): KL divergence of the softened answers, times T squared,
beside cross-entropy with the labels, and the similarities between the images of a batch in the features before the
classifier, which may have other widths (Tung & Mori 2019, arXiv 1907.09682). A large learning rate matters more than a
long training (Renda et al. 2020, arXiv 2003.02389; Le & Hua 2021, arXiv 2105.03193).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from zoo.networks.registry import last_layers
from zoo.training.evaluate import check_labels, check_validation
from zoo.training.loop.distributed import pick_device
from zoo.training.loop.fit import FitReport, fit
from zoo.training.loop.losses import Loss
from zoo.training.loop.state import STATE
from zoo.training.recipe import RecoverConfig
from zoo.training.stage import measured

__all__ = ["distillation", "recover"]


Seen = list[torch.Tensor]
"""The features [B, F] of the last batch that a network saw."""


@contextmanager
def features_read(model: nn.Module) -> Iterator[Seen]:
    """What a network's classifier reads, kept at every call meanwhile.

    Raises:
        UsageError: the network has no classifier.
    """
    layers = last_layers(model)
    if not layers:
        raise UsageError(
            f"{type(model).__name__} has no classifier whose features could be taught; recover.features = 0"
        )
    seen: Seen = []

    def note_features(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen[:] = [inputs[0].flatten(1)]

    handle = layers[0].register_forward_pre_hook(note_features)
    try:
        yield seen
    finally:
        handle.remove()


def similarity_loss(features: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of the cosines between the images of a batch, a scalar.

    Tung & Mori 2019, equation 4, with cosines instead of rows of products that are normalised afterwards.

    Args:
        features: float32 [B, F].
        wanted: float32 [B, F'] of the same images.
    """
    one, other = (functional.normalize(values - values.mean(0), dim=1) for values in (features, wanted))
    return functional.mse_loss(one @ one.T, other @ other.T)


def distillation(teacher: nn.Module, config: RecoverConfig, seen: tuple[Seen, Seen] | None = None) -> Loss:
    """The loss (1 - w) CE(labels) + w T^2 KL(teacher || student), both softened by T, and that of their features.

    Args:
        teacher: gets no gradients.
        config: the weights.
        seen: the student's features and the teacher's, where `config.features` asks for them.

    Raises:
        UsageError: a weight of the answers outside [0, 1], a negative one of the features, or a temperature that is
            not positive.
    """
    weight, temperature, smoothing = config.distill, config.temperature, config.fit.label_smoothing
    if not 0 <= weight <= 1 or temperature <= 0:
        raise UsageError(
            f"recover.distill must be in [0, 1] and its temperature positive, got {weight} and {temperature}"
        )
    if not 0 <= config.features < math.inf:
        raise UsageError(f"recover.features must be 0 or a positive weight, got {config.features}")
    teacher = teacher.eval().requires_grad_(False)

    def loss(inputs: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hard = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        if weight == 0 and not config.features:
            return hard
        with torch.no_grad():
            wanted = functional.log_softmax(teacher(inputs) / temperature, dim=1)
        given = functional.log_softmax(logits / temperature, dim=1)
        soft = functional.kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2
        total = (1 - weight) * hard + weight * soft
        if config.features and seen is not None:
            total = total + config.features * similarity_loss(*(found[0].float() for found in seen))
        return total

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
    logs: Sequence[str] = (),
) -> FitReport:
    """Fine-tune a pruned checkpoint into another one; `config.fit.keep` says which epoch counts, or none of them.

    Args:
        source: the pruned checkpoint.
        teacher: the unpruned one, with the same labels.
        target: checkpoint to write; its folder also gets the log and the state for resuming.
        config: how.
        dataset: what to train, validate and finally test on.
        resume: continue an interrupted recovery.
        test: read the test split at the end.
        logs: see zoo.training.loop.logs.LOGS.

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
    check_validation(card, dataset)
    spec = card.use.input
    with ExitStack() as stack:
        seen = None
        if config.features:
            seen = stack.enter_context(features_read(model)), stack.enter_context(features_read(parent))
        report = fit(
            model,
            train=DecodedImages(dataset.splits["train"], canvas(spec)),
            validation=DecodedImages(dataset.splits["validation"], spec),
            spec=spec,
            config=config.fit,
            folder=target.parent,
            resume=resume,
            loss=distillation(parent.to(pick_device()), config, seen),
            title=card.name,
            identity=[dataclasses.asdict(config), sha256_file(teacher)],
            logs=logs,
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
