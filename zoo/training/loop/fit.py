"""The one training loop: fine-tuning, training from scratch, LoRA and recovery after pruning all run here."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.artefact.card import Input
from zoo.base.errors import UsageError
from zoo.base.interrupt import deferred_signals
from zoo.base.progress import note
from zoo.data.decoded import DecodedImages
from zoo.networks.registry import classifier_width
from zoo.training.loop.config import FitConfig, loss_of
from zoo.training.loop.distributed import barrier, gather, join_world
from zoo.training.loop.feeds import TrainingImages
from zoo.training.loop.logs import LogJob, open_logs, stage_factors
from zoo.training.loop.losses import Loss
from zoo.training.loop.methods.masks import Mask
from zoo.training.loop.methods.semi_supervised import Unlabelled
from zoo.training.loop.objective import Objective
from zoo.training.loop.trainer import EpochResult, Pace, Stopped, Trainer

__all__ = ["EpochResult", "FitConfig", "FitReport", "Pace", "Stopped", "fit", "measure_pace"]


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What training did."""

    best_epoch: int
    """Counted from 1, the last one where that is kept; 0 where a recovery kept the network it began with."""
    validation_top1: float
    """NaN without validation images."""
    epochs: int
    """That were trained: fewer than were asked for where the training ended before."""
    seconds: float
    """Over all sessions of a resumed run."""
    cpu_seconds: float
    """Processor time of all threads of this process meanwhile, validation included."""
    trainable: int
    """How many weights could change."""
    precision: str
    """float32 or bf16."""


def fit(
    model: nn.Module,
    *,
    train: DecodedImages,
    validation: DecodedImages,
    spec: Input,
    config: FitConfig,
    folder: Path,
    resume: bool,
    loss: Loss | None = None,
    title: str = "",
    identity: object = None,
    unlabelled: DecodedImages | None = None,
    semi: Unlabelled | None = None,
    mask: Mask | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
    logs: Sequence[str] = (),
) -> FitReport:
    """Train `model` in place and leave it with the weights of its best epoch on the validation images, or its last.

    What is random in a step (order, augmentation, dropout) is drawn from (seed, epoch, step) alone, so a run that was
    killed anywhere ends with the same weights as one that was not. Ctrl-C ends after the step that it came in.

    Args:
        model: on the CPU; frozen parameters stay as they are.
        train: images of the canvas size (see zoo.data.decoded.canvas).
        validation: images of the input size; none of them where the last epoch is kept, whatever it is worth.
        spec: the network's input.
        config: how long and how fast.
        folder: gets log.csv, and state.pt until training has ended.
        resume: continue from state.pt if it belongs to the same run; else start over.
        loss: default: what the configuration says. One of one's own sees images, so nothing is computed only once.
        title: of the progress bar.
        identity: what else makes this run another one than its weights, data and settings do (JSON).
        unlabelled: images whose labels are not used; with `semi`.
        semi: how to learn from them.
        mask: train only chosen weights.
        on_epoch: called after each validation, in every process.
        logs: what else than log.csv to write, see zoo.training.loop.logs.LOGS; the first process does.

    Raises:
        UsageError: the network has fewer stages than the configuration freezes, or settings exclude each other or need
            validation images.
        TrainingError: nothing is trainable, or the loss is not finite.
        ModuleNotFoundError: the package that writes one of the logs is not installed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; state.pt was written.
    """
    if not len(validation) and (config.keep != "last" or config.schedule == "plateau"):
        raise UsageError(
            f"train.keep = {config.keep!r} and train.schedule = {config.schedule!r}: without validation images "
            "expected train.keep = 'last' and a schedule other than plateau"
        )
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    run = _trainer(model, train, validation, spec, config, loss, unlabelled, semi, folder=folder, title=title)
    world = run.world
    run.fingerprint = _fingerprint(model, config, train, validation, [identity, _plain(semi), _plain(mask)])
    try:
        trained = run.prepare()
        if mask is not None:
            trained = run.hold_all_but(mask)
        if title and world.first:
            note(run.plan(trained))
        with _denormals_flushed(), deferred_signals() as stop_if_asked:
            if not (resume and run.load()) and run.settle():
                run.save(run.state.seconds)  # so that a run that is killed goes on as it began
            job = LogJob(
                folder=folder, title=title, fingerprint=run.fingerprint, resume=resume, settings=asdict(config)
            )
            factors = stage_factors(model, run.parts, run.optimizer)
            with open_logs(logs if world.first else (), job, run.state.history, factors) as write:

                def after(result: EpochResult) -> None:
                    write(run.state.history[-1])
                    if on_epoch is not None:
                        on_epoch(result)

                run.train(stop_if_asked, after)
        run.keep_best()
        run.reestimate_norms()
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(wanted[name])
    barrier(world)
    model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    state = run.state
    return FitReport(
        best_epoch=state.best_epoch + 1,
        validation_top1=state.best_top1,
        epochs=state.epoch,
        seconds=round(state.seconds, 1),
        cpu_seconds=round(run.cpu_seconds, 1),
        trainable=trained,
        precision=state.precision,
    )


def measure_pace(
    model: nn.Module,
    *,
    train: DecodedImages,
    validation: DecodedImages,
    spec: Input,
    config: FitConfig,
    folder: Path,
    unlabelled: DecodedImages | None = None,
    semi: Unlabelled | None = None,
    mask: Mask | None = None,
) -> Pace:
    """Time the first steps that :func:`fit` would do with the same arguments, on a copy of the model.

    Raises:
        UsageError, TrainingError: as :func:`fit`.
    """
    run = _trainer(copy.deepcopy(model), train, validation, spec, config, None, unlabelled, semi, folder=folder)
    run.prepare()
    if mask is not None:
        run.hold_all_but(mask)
    with _denormals_flushed():
        pace = run.pace()
    # Processes that train together wait for the slowest.
    slowest: Pace = max(gather(pace, run.world), key=lambda one: one.epoch)
    return slowest


def _trainer(
    model: nn.Module,
    train: DecodedImages,
    validation: DecodedImages,
    spec: Input,
    config: FitConfig,
    loss: Loss | None,
    unlabelled: DecodedImages | None,
    semi: Unlabelled | None,
    *,
    folder: Path,
    title: str = "",
) -> Trainer:
    world, config = join_world(), config.for_images(len(train))
    memory_format = torch.channels_last if _convolutional(model) else torch.contiguous_format
    model.to(world.device, memory_format=memory_format)  # type: ignore[call-overload]
    classes = classifier_width(model) or 0
    pictures = TrainingImages(train, validation, spec, config.augment, classes, config.seed, world, memory_format)
    objective = Objective(
        model, config, loss or loss_of(config, train.labels, classes), custom=loss is not None, device=world.device
    )
    if semi is not None:
        objective.learn_from(unlabelled, semi)
    return Trainer(model, config, pictures, objective, folder=folder, title=title)


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Round denormal numbers to zero meanwhile: they are many times slower to compute with, and nothing is lost."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _fingerprint(
    model: nn.Module, config: FitConfig, train: DecodedImages, validation: DecodedImages, identity: object
) -> str:
    """Identifies a run: its settings, data and initial weights."""
    total = hashlib.sha256(json.dumps([asdict(config), identity], sort_keys=True).encode())
    for images in (train, validation):
        total.update(repr(images.spec).encode())
        total.update("".join(f"{sample.digest}:{sample.label};" for sample in images.samples).encode())
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _plain(config: Any) -> object:
    return asdict(config) if config is not None else None


def _convolutional(model: nn.Module) -> bool:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
