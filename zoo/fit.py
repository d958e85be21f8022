"""The one training loop: fine-tuning, training from scratch, LoRA and recovery after pruning all run here.

`B` is the batch size, `K` the number of labels.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from zoo.batches import Images, epoch_order
from zoo.card import Input
from zoo.datasets.augment import Augment, strong
from zoo.distributed import World, barrier, gather, join_world
from zoo.ema import Average
from zoo.errors import TrainingError, UsageError
from zoo.feeds import Feed, Pictures, WholeFeed, cut_feed
from zoo.freeze import Freezing, Stage, eval_frozen, is_batch_norm, live_norms, phases, stages, trained_at
from zoo.interrupt import deferred_signals
from zoo.losses import Loss, class_weights, cross_entropy, focal
from zoo.masks import Mask, MaskedUpdate, choose
from zoo.models.registry import classifier_width
from zoo.norms import reestimate
from zoo.optim import ladder, make_optimizer, make_schedule, plateau
from zoo.penalty import l2sp, starting_point
from zoo.progress import note
from zoo.run_state import LOG, STATE, RunState, read_state, write_log, write_state
from zoo.seeds import generator_for, seed_of
from zoo.semi import Unlabelled, fixmatch_loss, pseudo_label_loss, ramp_weight

__all__ = [
    "EpochResult",
    "FitConfig",
    "FitReport",
    "Stopped",
    "fit",
    "loss_of",
    "optimizer_of",
    "pick_device",
    "with_sync_batch_norm",
]

_SAVE_SECONDS = 600
"""Long epochs write state.pt this often in between."""
_SAVE_SHARE = 0.05
"""Writing state.pt takes at most this share of the time: it is not written after every short epoch."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast to train what."""

    epochs: int = 10
    batch_size: int = 64
    accumulate: int = 1
    """Each batch is computed in so many pieces, to save memory; their gradients add up to the batch's."""
    freeze: Freezing = field(default_factory=Freezing)
    """Which layers are trained, and what BatchNorm does."""
    optimizer: str = "adamw"
    lr: float = 1e-3
    """Peak learning rate."""
    head_factor: float = 1.0
    """The classifier learns so many times faster than the rest; for a new head on pretrained features."""
    layer_decay: float = 1.0
    """Each stage before the classifier learns by this factor slower than the one after it."""
    rates: tuple[float, ...] = ()
    """Factors of the rate of the classifier, the stage before it, and so on; the last one holds for all before."""
    schedule: str = "one-cycle"
    """constant, cosine, one-cycle, plateau (a tenth whenever the validation loss has not fallen for `patience` epochs)
    or step (a tenth after each third)."""
    warmup: float = 0.1
    """Share of training in which the rate rises."""
    patience: int = 3
    """Of the schedule `plateau`, in epochs."""
    weight_decay: float = 0.05
    l2sp: float = 0.0
    """Strength of a pull to the weights that training starts from; see zoo.penalty."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: no limit."""
    ema: float = 0.0
    """Decay of an average of the weights, which is then what is validated and kept; 0: none."""
    loss: str = "cross-entropy"
    """cross-entropy or focal."""
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    """`none`, or `balanced`: inverse to the classes' frequency in the training images."""
    sampler: str = "shuffled"
    """`shuffled`, or `balanced`: every class equally often."""
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    views: int = 0
    """What frozen layers make of each training picture is computed for so many augmented views and kept; 0: pictures
    are varied anew in each epoch, and only pictures without augmentation are kept."""
    precision: str = "auto"
    """float32, bf16 (mixed precision), or auto: bf16 on a GPU."""
    compile: bool = False
    """Train through torch.compile; pays for long trainings on a GPU."""

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("accumulate", 1), ("patience", 1), ("views", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"train.{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("lr", "head_factor", "layer_decay"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"train.{name} must be a positive number, got {getattr(self, name)}")
        for name in ("weight_decay", "l2sp", "clip", "focal_gamma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"train.{name} must be 0 or a positive number, got {getattr(self, name)}")
        if self.accumulate > self.batch_size:
            raise UsageError(
                f"train.accumulate = {self.accumulate} pieces of a batch of {self.batch_size} are too many"
            )
        if self.freeze.unfreeze and self.freeze.unfreeze[-1] >= self.epochs:
            raise UsageError(
                f"train.freeze.unfreeze: a stage would join in epoch {self.freeze.unfreeze[-1]}, counted from 0, "
                f"but there are {self.epochs} epochs"
            )
        if not 0 <= self.ema < 1:
            raise UsageError(f"train.ema must be a decay in (0, 1) like 0.999, or 0 for none; got {self.ema}")
        for name, known in (
            ("loss", ("cross-entropy", "focal")),
            ("class_weights", ("none", "balanced")),
            ("sampler", ("shuffled", "balanced")),
            ("precision", ("auto", "bf16", "float32")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"train.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What training did."""

    best_epoch: int
    """Counted from 1."""
    validation_top1: float
    epochs: int
    seconds: float
    """Over all sessions of a resumed run."""
    trainable: int
    """How many weights could change."""


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What an epoch came to."""

    epoch: int
    """Counted from 1."""
    loss: float
    validation_loss: float
    validation_top1: float
    seconds: float


class Stopped(Exception):  # noqa: N818 (not an error)
    """Raised by `on_epoch` to end training with the best epoch so far."""


def pick_device() -> torch.device:
    """The first NVIDIA GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def loss_of(config: FitConfig, labels: torch.Tensor, classes: int) -> Loss:
    """The loss that a configuration asks for.

    Args:
        config: its `loss`, `focal_gamma`, `label_smoothing` and `class_weights`.
        labels: int64 [N], of the training images; what class weights are computed from.
        classes: K.
    """
    weights = class_weights(labels, classes) if config.class_weights == "balanced" else None
    if config.loss == "focal":
        return focal(config.focal_gamma, config.label_smoothing, weights)
    return cross_entropy(config.label_smoothing, weights)


def optimizer_of(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """The optimizer of everything in `model` that requires gradients, with the rates of its stages."""
    factors = ladder(stages(model), head_factor=config.head_factor, layer_decay=config.layer_decay, rates=config.rates)
    return make_optimizer(config.optimizer, model, lr=config.lr, weight_decay=config.weight_decay, factors=factors)


def fit(
    model: nn.Module,
    *,
    train: Images,
    validation: Images,
    spec: Input,
    config: FitConfig,
    folder: Path,
    resume: bool,
    loss: Loss | None = None,
    title: str = "",
    identity: object = None,
    unlabelled: Images | None = None,
    semi: Unlabelled | None = None,
    mask: Mask | None = None,
    on_epoch: Callable[[EpochResult], None] | None = None,
) -> FitReport:
    """Train `model` in place and leave it with the weights of its best epoch on the validation images.

    What is random in a step (order, augmentation, dropout) is drawn from (seed, epoch, step) alone, so a run that was
    killed anywhere ends with the same weights as one that was not. Ctrl-C ends after the step that it came in.

    Args:
        model: on the CPU; frozen parameters stay as they are.
        train: pictures of the canvas size (see zoo.batches.canvas).
        validation: pictures of the input size.
        spec: the network's input.
        config: how long and how fast.
        folder: gets log.csv, and state.pt until training has ended.
        resume: continue from state.pt if it belongs to the same run; else start over.
        loss: default: what the configuration says. One of one's own sees pictures, so nothing is computed only once.
        title: of the progress bar.
        identity: what else makes this run another one than its weights, data and settings do (JSON).
        unlabelled: pictures whose labels are not used; with `semi`.
        semi: how to learn from them.
        mask: train only chosen weights.
        on_epoch: called after each epoch, in every process.

    Raises:
        UsageError: the network has fewer stages than the configuration freezes, or settings exclude each other.
        TrainingError: nothing is trainable, or the loss is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM; state.pt was written.
    """
    world = join_world()
    memory_format = torch.channels_last if _convolutional(model) else torch.contiguous_format
    model.to(world.device, memory_format=memory_format)  # type: ignore[call-overload]
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    classes = classifier_width(model) or 0
    pictures = Pictures(train, validation, spec, config.augment, classes, config.seed, world, memory_format)
    objective = _Objective(model, config, loss or loss_of(config, train.labels, classes), custom=loss is not None)
    if semi is not None:
        objective.learn_from(unlabelled, semi)
    run = _Run(model, config, pictures, objective, folder=folder, title=title)
    run.fingerprint = _fingerprint(model, config, train, validation, [identity, _plain(semi), _plain(mask)])
    try:
        trained = run.prepare(wanted)
        if mask is not None:
            trained = run.hold_all_but(mask)
        if resume:
            run.load()
        with _denormals_flushed(), deferred_signals() as stop_if_asked:
            run.train(wanted, stop_if_asked, on_epoch)
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
        epochs=config.epochs,
        seconds=round(state.seconds, 1),
        trainable=trained,
    )


class _Objective:
    """What a step minimises."""

    def __init__(self, model: nn.Module, config: FitConfig, loss: Loss, *, custom: bool) -> None:
        self.model = model
        self.config = config
        self.loss = loss
        self.needs_pictures = custom
        self.start: dict[str, torch.Tensor] = {}
        self.unlabelled: Images | None = None
        self.semi: Unlabelled | None = None

    def learn_from(self, unlabelled: Images | None, semi: Unlabelled) -> None:
        if not unlabelled:
            raise UsageError("there are no unlabelled images to learn from; keep fewer labels (labels = 0.1)")
        if self.config.accumulate > 1 or self.config.augment.mixup or self.config.augment.cutmix:
            raise UsageError("[unlabelled] goes with train.accumulate = 1 and without MixUp or CutMix")
        self.unlabelled, self.semi, self.needs_pictures = unlabelled, semi, True

    def penalty(self) -> torch.Tensor | None:
        return l2sp(self.model, self.start, self.config.l2sp) if self.config.l2sp else None


class _Run:
    """One training run."""

    def __init__(
        self,
        model: nn.Module,
        config: FitConfig,
        pictures: Pictures,
        objective: _Objective,
        *,
        folder: Path,
        title: str,
    ) -> None:
        self.model = model
        self.config = config
        self.pictures = pictures
        self.objective = objective
        self.folder = folder
        self.title = title
        self.fingerprint = ""
        self.world: World = pictures.world
        self.parts: list[Stage] = stages(model)
        self.schedule = make_schedule(config.schedule, warmup=config.warmup)
        self.average = Average(model, config.ema) if config.ema else None
        self.state = RunState()
        self.best: dict[str, torch.Tensor] = {}
        self.held: MaskedUpdate | None = None
        self.saved_at = time.monotonic()
        self.save_seconds = 0.0
        self.shadow: nn.Module | None = None
        """With SyncBatchNorm: the network that steps call, whose parameters and statistics are the model's."""

    def prepare(self, wanted: dict[str, bool]) -> int:
        """Make the optimizer of all that is ever trained; returns how many weights these are."""
        last = phases(self.config.freeze, self.config.epochs)[-1][-1]
        self._require(wanted, last)
        self.optimizer = optimizer_of(self.model, self.config)
        if self.config.l2sp:
            self.objective.start = starting_point(self.model)
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def hold_all_but(self, mask: Mask) -> int:
        """Choose the weights that may change; returns how many they are."""
        config, train = self.config, self.pictures.train
        order = epoch_order(train.labels, sampler="shuffled", generator=generator_for(config.seed, "mask"))
        chunks = _chunks(order[: mask.images], config.batch_size)
        feed = WholeFeed(self.model, self.model, self.pictures)
        batches = feed.batches(0, chunks, 0) if mask.by in ("fisher", "gradient") else iter(())
        masks = choose(self.model, mask, batches, self.objective.loss)
        self.held = MaskedUpdate(self.model, masks)
        free = [p for name, p in self.model.named_parameters() if p.requires_grad and name not in masks]
        return sum(int(part.sum()) for part in masks.values()) + sum(parameter.numel() for parameter in free)

    def train(
        self,
        wanted: dict[str, bool],
        stop_if_asked: Callable[[], None],
        on_epoch: Callable[[EpochResult], None] | None,
    ) -> None:
        """All epochs that are left."""
        for phase in phases(self.config.freeze, self.config.epochs):
            left = range(max(phase.start, self.state.epoch), phase.stop)
            if not left:
                continue
            trained = self._require(wanted, left.start)
            self.model.train()
            live = eval_frozen(self.model, self.config.freeze, left.start, found=self.parts)
            feed = self._feed(trained, set(live), len(phase))
            for epoch in left:
                result = self._epoch(epoch, feed, stop_if_asked)
                if on_epoch is not None:
                    try:
                        on_epoch(result)
                    except Stopped:
                        return

    def _require(self, wanted: dict[str, bool], epoch: int) -> set[str]:
        trained = trained_at(self.model, self.config.freeze, epoch, found=self.parts)
        trained = {name for name in trained if wanted[name]}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
        return trained

    def _feed(self, trained: set[str], live: set[str], epochs: int) -> Feed:
        config = self.config
        frozen = any(name not in trained for name, _ in self.model.named_parameters())
        if frozen and self.objective.needs_pictures:
            found: Any = "this loss looks at the pictures"
        elif frozen:
            found = cut_feed(self.model, trained, live, self.pictures, views=config.views, epochs=epochs)
        else:
            found = None
        if found is not None and not isinstance(found, str):
            return found  # type: ignore[no-any-return]
        if found is not None and config.freeze.stages is not None:
            self._say(f"{self.title}: frozen layers are computed in every epoch: {found}")
        network: nn.Module = self.model
        if self.world.size > 1:
            network = self._parallel(live)
        if config.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        return WholeFeed(self.model, network, self.pictures)

    def _parallel(self, live: set[str]) -> nn.Module:
        network, self.shadow = self.model, None
        if live and self.world.device.type == "cuda":
            # Shares parameters and buffers with the model, whose own layers stay what they are.
            network = self.shadow = with_sync_batch_norm(self.model)
        elif live:
            self._say(
                "statistics of BatchNorm are each process's own on CPUs (SyncBatchNorm needs GPUs), so the result is "
                "not that of one process; with train.freeze.norm = 'freeze' it is"
            )
        return DistributedDataParallel(network, broadcast_buffers=bool(live))

    def _epoch(self, epoch: int, feed: Feed, stop_if_asked: Callable[[], None]) -> EpochResult:
        config, state, train = self.config, self.state, self.pictures.train
        label = f"{self.title} epoch {epoch + 1}/{config.epochs}"
        order = epoch_order(train.labels, sampler=config.sampler, generator=generator_for(config.seed, epoch, "order"))
        chunks = _chunks(order, config.batch_size)
        extra = self._unlabelled_batches(epoch, len(chunks), state.step)
        begin = time.perf_counter()
        feed.network.train()
        self.model.train()
        for layer in eval_frozen(self.model, config.freeze, epoch, found=self.parts).values():
            # Networks ported from TensorFlow keep 99 % of the old statistics per step, which suits ImageNet's million
            # steps; a short fine-tuning would end with statistics of weights it no longer has.
            if layer.momentum is not None:
                layer.momentum = max(layer.momentum, 0.1)
        if self.shadow is not None:
            _copy_modes(self.model, self.shadow)
        hidden = not (self.world.first and sys.stderr.isatty())
        with tqdm(total=len(chunks), initial=state.step, desc=label, leave=False, disable=hidden) as bar:
            for inputs, targets in feed.batches(epoch, chunks, state.step):
                torch.manual_seed(seed_of(config.seed, epoch, state.step, "dropout", self.world.rank))
                rows = len(chunks[state.step])
                state.loss_sum += self._step(feed, inputs, targets, rows, next(extra), epoch, len(chunks))
                state.step += 1
                bar.set_postfix(loss=f"{state.loss_sum / state.step:.3f}", best=f"{state.best_top1:.2%}", refresh=False)
                bar.update()
                self._pause(stop_if_asked, state.seconds + time.perf_counter() - begin)
        return self._finish_epoch(epoch, len(chunks), feed, begin, label)

    def _pause(self, stop_if_asked: Callable[[], None], seconds: float) -> None:
        """Between two steps: write the state if it is time, or if the run is to stop here."""
        try:
            stop_if_asked()
        except KeyboardInterrupt:
            # Processes that train together need not stop at the same step; they resume from the last epoch.
            if self.world.size == 1:
                self.save(seconds)
            raise
        if self.world.size == 1 and time.monotonic() - self.saved_at > _SAVE_SECONDS:
            self.save(seconds)

    def _step(
        self,
        feed: Feed,
        inputs: Any,
        targets: torch.Tensor,
        rows: int,
        extra: tuple[torch.Tensor, torch.Tensor] | None,
        epoch: int,
        steps: int,
    ) -> float:
        """One update; returns this process's part of the mean loss over the batch of `rows` pictures."""
        config, model = self.config, self.model
        done = epoch + self.state.step / steps
        losses = [row["validation_loss"] for row in self.state.history]
        rate = config.lr * self.schedule(done / config.epochs)
        rate *= plateau(losses, patience=config.patience) if config.schedule == "plateau" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        pieces = list(_pieces(inputs, targets, config.accumulate))
        total = 0.0
        for number, (part, wanted) in enumerate(pieces):
            # Averaging over processes and adding pieces up has to come to the mean over the batch.
            share = len(wanted) / rows
            last = number == len(pieces) - 1
            with nullcontext() if last or self.world.size == 1 else feed.network.no_sync():  # type: ignore[operator]
                value = self._loss(feed.network, part, wanted, extra, done / config.epochs) * share
                if last and (penalty := self.objective.penalty()) is not None:
                    value = value + penalty / self.world.size
                total += float(value.item())
                self._check(total, done, rate)
                (value * self.world.size).backward()  # type: ignore[no-untyped-call]
        if self.held is not None:
            self.held.before_step(model)
        if config.clip:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        self.optimizer.step()
        if self.held is not None:
            self.held.after_step(model)
        if self.average is not None:
            self.average.update(model)
        return total

    def _loss(
        self,
        network: nn.Module,
        inputs: Any,
        targets: torch.Tensor,
        extra: tuple[torch.Tensor, torch.Tensor] | None,
        progress: float,
    ) -> torch.Tensor:
        half = self.config.precision == "bf16" or (self.config.precision == "auto" and self.world.device.type == "cuda")
        semi = self.objective.semi
        with torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=half):
            if extra is None or semi is None:
                return self.objective.loss(inputs, network(inputs).float(), targets)
            weak, strong_view = extra
            several = [inputs, weak, strong_view] if semi.method == "fixmatch" else [inputs, weak]
            logits = network(torch.cat(several)).float().split([len(part) for part in several])
        value = self.objective.loss(inputs, logits[0], targets)
        if semi.method == "fixmatch":
            guessed, _ = fixmatch_loss(logits[1], logits[2], semi.threshold, temperature=semi.temperature)
        else:
            guessed, _ = pseudo_label_loss(logits[1], semi.threshold, temperature=semi.temperature)
        return value + ramp_weight(progress, semi) * guessed

    def _check(self, loss: float, done: float, rate: float) -> None:
        if math.isfinite(loss):
            return
        # The weights are still those of the step before.
        if self.world.size == 1 and self.state.epoch:
            self.save(self.state.seconds)
        state = self.folder / STATE
        kept = f"the state before is in {state}" if state.is_file() else "nothing was kept"
        raise TrainingError(
            f"the loss is {loss} after {done:.2f} epochs (step {self.state.step + 1} of epoch {self.state.epoch + 1}) "
            f"at the learning rate {rate:.2g}; lower it (--set train.lr=...); {kept}"
        )

    def _unlabelled_batches(
        self, epoch: int, steps: int, first: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor] | None]:
        """A weakly and a strongly varied view of the unlabelled pictures of each step; None without them."""
        semi, images = self.objective.semi, self.objective.unlabelled
        if semi is None or images is None:
            while True:
                yield None
        size, seed = min(semi.ratio * self.config.batch_size, len(images)), self.config.seed
        draw = random.Random(seed_of(seed, epoch, "unlabelled"))
        order: list[int] = []
        while len(order) < steps * size:
            order += draw.sample(range(len(images)), len(images))
        chunks = [order[step * size : (step + 1) * size] for step in range(steps)]
        rows = self.world.rows(size)
        for step, (pixels, _) in enumerate(images.batches([chunk[rows] for chunk in chunks[first:]]), start=first):
            yield tuple(  # type: ignore[misc]
                self.pictures.inputs(
                    pixels, config, generator_for(seed, epoch, step, kind), total=size, offset=rows.start
                )
                for kind, config in (("weak", self.config.augment), ("strong", strong(self.config.augment)))
            )

    def _finish_epoch(self, epoch: int, steps: int, feed: Feed, begin: float, label: str) -> EpochResult:
        """Validate, keep the weights if they are the best so far, write the state and the log."""
        state = self.state
        with self.average.applied(self.model) if self.average else nullcontext():
            logits = torch.from_numpy(feed.validation_logits())
            truth = self.pictures.validation.labels
            top1 = (logits.argmax(dim=1) == truth).double().mean().item()
            validation_loss = nn.functional.cross_entropy(logits, truth).item()
            if (top1, -validation_loss) > (state.best_top1, -state.best_loss):
                state.best_epoch, state.best_top1, state.best_loss = epoch, top1, validation_loss
                self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        seconds = time.perf_counter() - begin
        loss = sum(gather(state.loss_sum, self.world)) / steps
        first = self.optimizer.param_groups[0]
        row = {
            "epoch": epoch + 1,
            "lr": first["lr"] / first["factor"],
            "loss": loss,
            "validation_loss": validation_loss,
            "validation_top1": top1,
            "seconds": seconds,
        }
        state.history.append(row)
        state.epoch, state.step, state.loss_sum = epoch + 1, 0, 0.0
        state.seconds += seconds
        if (time.monotonic() - self.saved_at) * _SAVE_SHARE >= self.save_seconds:
            self.save(state.seconds)
        self._say(f"{label}: loss {loss:.3f}, validation top-1 {top1:.2%}, {seconds:.1f} s")
        return EpochResult(
            epoch=epoch + 1, loss=loss, validation_loss=validation_loss, validation_top1=top1, seconds=seconds
        )

    def save(self, seconds: float) -> None:
        """Write state.pt and log.csv.

        Args:
            seconds: training has taken, over all sessions.
        """
        begin = time.monotonic()
        if self.world.first:
            tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}
            if self.average is not None:
                tensors["average"] = {"state": self.average.state, "steps": self.average.steps}
            state = dataclasses.replace(self.state, seconds=seconds)
            write_state(self.folder / STATE, self.fingerprint, state, tensors)
            if state.history:
                write_log(self.folder / LOG, state.history)
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - begin

    def load(self) -> None:
        """Continue where state.pt left off, if it is of this very run."""
        path = self.folder / STATE
        if not path.is_file():
            return
        found = read_state(path, self.fingerprint)
        if found is None:
            self._say(f"{path} belongs to a run with other settings or data; starting over")
            return
        self.state, tensors = found
        self.model.load_state_dict(tensors["model"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.best = {name: tensor.to(self.world.device) for name, tensor in tensors["best"].items()}
        if self.average is not None:
            self.average.steps = tensors["average"]["steps"]
            self.average.state = {
                name: tensor.to(self.world.device) for name, tensor in tensors["average"]["state"].items()
            }
        inside = f" and {self.state.step} steps" if self.state.step else ""
        self._say(f"resuming after epoch {self.state.epoch}/{self.config.epochs}{inside}")

    def keep_best(self) -> None:
        """Give the network the weights of its best epoch, and write the whole log."""
        self.model.load_state_dict(self.best)
        if self.world.first:
            write_log(self.folder / LOG, self.state.history)

    def reestimate_norms(self) -> None:
        """Measure the statistics of BatchNorm anew, if the configuration says so."""
        config = self.config
        if config.freeze.norm != "reestimate":
            return
        layers = live_norms(self.model, config.freeze, config.epochs - 1, found=self.parts)
        if not layers:
            raise UsageError(
                f"train.freeze.norm = 'reestimate', but no trained layer of {type(self.model).__name__} is a BatchNorm"
            )
        train = Images(self.pictures.train.samples, self.pictures.spec)
        order = epoch_order(train.labels, sampler="shuffled", generator=generator_for(config.seed, "reestimate"))
        reestimate(
            self.model,
            list(layers.values()),
            train,
            order=order,
            batch_size=config.batch_size,
            device=self.world.device,
        )

    def _say(self, text: str) -> None:
        if self.world.first:
            note(text)


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Round denormal numbers to zero meanwhile: they are many times slower to compute with, and nothing is lost."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _chunks(order: list[int], size: int) -> list[list[int]]:
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    # A last batch of one picture has no variance for BatchNorm.
    return chunks[:-1] if len(chunks) > 1 and len(chunks[-1]) == 1 else chunks


def _pieces(inputs: Any, targets: torch.Tensor, count: int) -> Iterator[tuple[Any, torch.Tensor]]:
    """A batch in `count` pieces; `inputs` is a tensor [B, ...] or a tuple of them."""
    if count == 1:
        yield inputs, targets
        return
    for index in torch.arange(len(targets)).chunk(count):
        rows = slice(int(index[0]), int(index[-1]) + 1)
        yield (tuple(part[rows] for part in inputs) if isinstance(inputs, tuple) else inputs[rows]), targets[rows]


def _fingerprint(model: nn.Module, config: FitConfig, train: Images, validation: Images, identity: object) -> str:
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


def with_sync_batch_norm(model: nn.Module) -> nn.Module:
    """A network that computes the statistics of BatchNorm over all processes; its tensors are those of `model`."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model, shared))  # type: ignore[no-untyped-call]
    return twin


def _copy_modes(source: nn.Module, target: nn.Module) -> None:
    """Training or evaluation, and the momentum of BatchNorm, layer by layer."""
    for name, module in source.named_modules():
        twin = target.get_submodule(name)
        twin.training = module.training
        if is_batch_norm(module):
            twin.momentum = module.momentum  # type: ignore[assignment]


def _convolutional(model: nn.Module) -> bool:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
