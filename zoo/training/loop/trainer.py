"""One training run: its epochs and steps, and what it keeps on disk."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from zoo.base.errors import TrainingError, UsageError
from zoo.base.progress import Bar, note
from zoo.base.seeds import generator_for, seed_of
from zoo.data.decoded import DecodedImages, epoch_order
from zoo.networks.stages import Stage, eval_frozen, is_batch_norm, live_norms, phases, stages, trained_at
from zoo.training.loop.config import FitConfig, optimizer_of
from zoo.training.loop.distributed import World, gather
from zoo.training.loop.feeds import Feed, TrainingImages, WholeFeed, cut_feed
from zoo.training.loop.methods.averaging import Average
from zoo.training.loop.methods.folding import folded
from zoo.training.loop.methods.masks import Mask, MaskedUpdate, choose
from zoo.training.loop.methods.norms import even_chunks, reestimate
from zoo.training.loop.objective import Objective, Views
from zoo.training.loop.optim import make_schedule, plateau
from zoo.training.loop.precision import settle_precision
from zoo.training.loop.state import LOG, STATE, RunState, read_state, write_log, write_state

__all__ = ["EpochResult", "Pace", "Stopped", "Trainer", "with_sync_batch_norm"]

_SAVE_SECONDS = 600
"""Long epochs write state.pt this often in between."""
_PACE_STEPS = 5
"""At most so many steps, after the first, are timed to plan a training."""
_PACE_IMAGES = 256
"""At most so many validation images."""
_VALIDATION_SHARE = 0.2
"""With many validation images for few training images, not every epoch ends with a validation."""
_NORM_IMAGES = 10_000
"""At most so many images, drawn at random, to measure the statistics of BatchNorm anew."""
_SAVE_SHARE = 0.05
"""Writing state.pt takes at most this share of the time: it is not written after every short epoch."""


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """What the epochs since the last validation came to."""

    epoch: int
    """The last of them, counted from 1."""
    loss: float
    """Their mean."""
    validation_loss: float
    """NaN, as the next one, without validation images."""
    validation_top1: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long the parts of a training take on this machine, in seconds."""

    once: float
    """What is computed before the first step, and what the first step takes longer than others."""
    epoch: float
    """One epoch: its steps at their mean time, and its share of the validations."""
    validation: float
    """The validation alone."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """Raised by `on_epoch` to end training with the best epoch so far."""


class Trainer:
    """One training run."""

    def __init__(
        self,
        model: nn.Module,
        config: FitConfig,
        pictures: TrainingImages,
        objective: Objective,
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
        self.may = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.schedule = make_schedule(config.schedule, warmup=config.warmup)
        self.average = Average(model, config.ema) if config.ema else None
        self.state = RunState()
        self.best: dict[str, torch.Tensor] = {}
        self.held: MaskedUpdate | None = None
        self.saved_at = time.monotonic()
        self.save_seconds = 0.0
        self.begun_cpu = time.process_time()
        self.laps: list[float] = []
        """When the first steps of the last phase ended."""
        self.shadow: nn.Module | None = None
        """With SyncBatchNorm: the network that steps call, whose parameters and statistics are the model's."""

    def prepare(self) -> int:
        """Make the optimizer of all that is ever trained; returns how many weights these are.

        Raises:
            UsageError: what the settings ask for is not in the network, or its batches are too small for BatchNorm.
        """
        config = self.config
        last = phases(config.freeze, config.epochs)[-1][-1]
        trained = self._require(last)
        live = live_norms(self.model, config.freeze, last, found=self.parts, may=self.may)
        self._check_freezing(trained, live)
        smallest = min(config.batch_size, len(self.pictures.train)) // (config.accumulate * self.world.size)
        if live and smallest < 2:
            raise UsageError(
                f"BatchNorm has no variance over {smallest} image(s): a batch of {config.batch_size} of "
                f"{len(self.pictures.train)} training images goes in {config.accumulate} piece(s) to "
                f"{self.world.size} process(es); raise train.batch_size, or train.freeze.norm = 'freeze'"
            )
        self.optimizer = optimizer_of(self.model, config)
        if config.l2sp:
            self.objective.remember_start()
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def _check_freezing(self, trained: set[str], live: Mapping[str, nn.Module]) -> None:
        freeze, name = self.config.freeze, type(self.model).__name__
        adapters = {key for key in self.may if key.rpartition(".")[2].startswith("lora_")}
        if adapters and not adapters <= trained:
            raise UsageError(
                f"train.freeze leaves {len(adapters - trained)} of {len(adapters)} LoRA tensors untrained; "
                "LoRA freezes the network itself, so leave train.freeze out"
            )
        if freeze.norms_only and not trained - set(self.parts[-1].parameters):
            raise UsageError(f"train.freeze.norms_only: {name} has no normalisation layer with scale and offset")
        if freeze.norm == "reestimate" and not live:
            raise UsageError(f"train.freeze.norm = 'reestimate', but no trained layer of {name} is a BatchNorm")

    def hold_all_but(self, mask: Mask) -> int:
        """Choose the weights that may change; returns how many they are."""
        config, train = self.config, self.pictures.train
        order = epoch_order(train.labels, sampler="shuffled", generator=generator_for(config.seed, "mask"))
        chunks = _chunks(order[: mask.images], config.batch_size, least=1)
        # Every process looks at all of these images, so that all choose the same weights.
        alone = dataclasses.replace(self.pictures, world=World(0, 1, self.world.device))
        feed = WholeFeed(self.model, self.model, alone)
        batches = feed.batches(0, chunks, 0) if mask.by in ("fisher", "gradient") else iter(())
        masks = choose(self.model, mask, batches, self.objective.loss)
        self.held = MaskedUpdate(self.model, masks)
        free = [p for name, p in self.model.named_parameters() if p.requires_grad and name not in masks]
        return sum(int(part.sum()) for part in masks.values()) + sum(parameter.numel() for parameter in free)

    def train(self, stop_if_asked: Callable[[], None], on_epoch: Callable[[EpochResult], None] | None) -> None:
        """All epochs that are left."""
        for phase in phases(self.config.freeze, self.config.epochs):
            left = range(max(phase.start, self.state.epoch), phase.stop)
            if not left:
                continue
            begin = time.perf_counter()
            trained = self._require(left.start)
            self.model.train()
            live = eval_frozen(self.model, self.config.freeze, left.start, found=self.parts, may=self.may)
            feed = self._feed(trained, set(live), len(phase))
            # What is computed once is part of what training takes.
            self.state.seconds += time.perf_counter() - begin
            with self._folded(feed, live):
                for epoch in left:
                    if self._over():
                        return
                    result = self._epoch(epoch, feed, stop_if_asked)
                    if result is not None and on_epoch is not None:
                        try:
                            on_epoch(result)
                        except Stopped:
                            return

    def pace(self) -> Pace:
        """Time the first steps of the last phase, which trains most; the network is not to be used afterwards."""
        last = phases(self.config.freeze, self.config.epochs)[-1]
        begin = time.perf_counter()
        self.settle()
        trained = self._require(last.start)
        self.model.train()
        live = eval_frozen(self.model, self.config.freeze, last.start, found=self.parts, may=self.may)
        feed = self._feed(trained, set(live), len(last))
        once = time.perf_counter() - begin
        chunks = self._chunks_of(0)
        count = min(_PACE_STEPS, max(2, len(chunks)))
        # Few images make few batches, which then come again.
        few = list(itertools.islice(itertools.cycle(chunks), count + 1))
        extra = self.objective.views(self.pictures, 0, len(few), 0)
        with self._folded(feed, live):
            laps = [time.perf_counter()]
            for chunk, (inputs, targets) in zip(few, feed.batches(0, few, 0), strict=True):
                self._step(feed, inputs, targets, len(chunk), next(extra), 0, len(chunks))
                laps.append(time.perf_counter())
            looked_at = min(_PACE_IMAGES, len(self.pictures.validation))
            feed.validation_logits(looked_at)
        validation = (time.perf_counter() - laps[-1]) * len(self.pictures.validation) / looked_at
        step = (laps[-1] - laps[1]) / count
        warm_up = max(0.0, laps[1] - laps[0] - step)
        validations = sum(map(self._validated, range(self.config.epochs)))
        epoch = len(chunks) * step + validation * validations / self.config.epochs
        return Pace(once=once + warm_up, epoch=epoch, validation=validation)

    def plan(self, trained: int) -> str:
        """What will be done, in a sentence.

        Args:
            trained: how many weights learn.
        """
        config, train = self.config, self.pictures.train
        counts = [count for count in torch.bincount(train.labels).tolist() if count]
        each = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        depth = len(config.freeze.unfreeze) or config.freeze.stages or len(self.parts)
        which = f"all {depth} stages" if depth == len(self.parts) else f"the last {depth} of {len(self.parts)} stages"
        still = config.freeze.norm == "freeze" and any(map(is_batch_norm, self.model.modules()))
        return (
            f"{self.title}: {len(train):,} training images, {each} of each of {len(counts)} labels; {config.epochs} "
            f"epochs of {len(self._chunks_of(0)):,} steps of {config.batch_size} images; {trained:,} weights of "
            f"{which} learn" + (", BatchNorm keeps its statistics" if still else "")
        )

    def _tell_minutes(self, epoch: int, steps: int) -> None:
        """After the first steps, say how long the others take, if that is long."""
        if len(self.laps) > _PACE_STEPS or epoch < phases(self.config.freeze, self.config.epochs)[-1].start:
            return
        self.laps.append(time.perf_counter())
        if len(self.laps) <= _PACE_STEPS:
            return
        step = (self.laps[-1] - self.laps[0]) / _PACE_STEPS
        minutes = step * (self.config.epochs * steps - epoch * steps - self.state.step) / 60
        if self.title and minutes >= 1:
            most = minutes / (1 - _VALIDATION_SHARE)
            self._say(f"{self.title}: {minutes:.1f} to {most:.1f} minutes to go, as its first steps promise")

    def _chunks_of(self, epoch: int) -> list[list[int]]:
        config, train = self.config, self.pictures.train
        order = epoch_order(train.labels, sampler=config.sampler, generator=generator_for(config.seed, epoch, "order"))
        return _chunks(order, config.batch_size, least=2 * self.world.size)

    def _require(self, epoch: int) -> set[str]:
        trained = trained_at(self.model, self.config.freeze, epoch, found=self.parts, may=self.may)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trained)
        return trained

    def _feed(self, trained: set[str], live: set[str], epochs: int) -> Feed:
        config = self.config
        frozen = any(name not in trained for name, _ in self.model.named_parameters())
        if frozen and self.objective.needs_pictures:
            found: Any = "this loss looks at the images"
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

    def _folded(self, feed: Feed, live: Collection[str]) -> AbstractContextManager[int]:
        """BatchNorm with frozen statistics within the convolutions, where the network is called as it is."""
        frozen = [name for name, layer in self.model.named_modules() if is_batch_norm(layer) and name not in live]
        if not frozen or self.shadow is not None or self.config.compile or not isinstance(feed, WholeFeed):
            return nullcontext(0)
        pictures = self.pictures
        noise = torch.randn(2, *pictures.spec.shape, generator=torch.Generator().manual_seed(0))
        return folded(self.model, frozen, noise.to(self.world.device, memory_format=pictures.memory_format))

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
        return DistributedDataParallel(network)

    def _epoch(self, epoch: int, feed: Feed, stop_if_asked: Callable[[], None]) -> EpochResult | None:
        config, state = self.config, self.state
        label = f"{self.title} epoch {epoch + 1}/{config.epochs}"
        chunks = self._chunks_of(epoch)
        extra = self.objective.views(self.pictures, epoch, len(chunks), state.step)
        begin = time.perf_counter()
        feed.network.train()
        self.model.train()
        for layer in eval_frozen(self.model, config.freeze, epoch, found=self.parts, may=self.may).values():
            # Networks ported from TensorFlow keep 99 % of the old statistics per step, which suits ImageNet's million
            # steps; a short fine-tuning would end with statistics of weights it no longer has.
            if layer.momentum is not None:
                layer.momentum = max(layer.momentum, 0.1)
        if self.shadow is not None:
            _copy_modes(self.model, self.shadow)
        hidden = not (self.world.first and sys.stderr.isatty())
        with Bar(total=len(chunks), initial=state.step, desc=label, leave=False, disable=hidden) as bar:
            for inputs, targets in feed.batches(epoch, chunks, state.step):
                torch.manual_seed(seed_of(config.seed, epoch, state.step, "dropout", self.world.rank))
                rows = len(chunks[state.step])
                state.loss_sum += self._step(feed, inputs, targets, rows, next(extra), epoch, len(chunks))
                state.step += 1
                bar.set_postfix(loss=f"{state.loss_sum / state.step:.3f}", best=f"{state.best_top1:.2%}", refresh=False)
                bar.update()
                self._tell_minutes(epoch, len(chunks))
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
        extra: Views | None,
        epoch: int,
        steps: int,
    ) -> float:
        """One update; returns this process's part of the mean loss over the batch of `rows` images."""
        config, model = self.config, self.model
        done = epoch + self.state.step / steps
        losses = [row["validation_loss"] for row in self.state.history]
        # Of the step's middle: neither the first step nor the last one is lost on a rate of 0.
        rate = config.lr * self.schedule((done + 0.5 / steps) / config.epochs)
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
                value = self.objective(feed.network, part, wanted, extra, done / config.epochs) * share
                if last and (penalty := self.objective.penalty()) is not None:
                    value = value + penalty / self.world.size
                total += float(value.item())
                self._check("the loss", total, done, rate)
                (value * self.world.size).backward()  # type: ignore[no-untyped-call]
        if self.held is not None:
            self.held.before_step(model)
        size = float(nn.utils.clip_grad_norm_(model.parameters(), config.clip or math.inf))
        self._check("the gradient's norm", size, done, rate)
        self.optimizer.step()
        if self.held is not None:
            self.held.after_step(model)
        if self.average is not None:
            self.average.update(model, epoch * steps + self.state.step + 1)
        return total

    def _check(self, what: str, value: float, done: float, rate: float) -> None:
        if math.isfinite(value):
            return
        state = self.folder / STATE
        kept = f"{state} keeps the weights from before (--weights {state})" if state.is_file() else "nothing was kept"
        raise TrainingError(
            f"{what} is {value} after {done:.2f} epochs (step {self.state.step + 1} of epoch {self.state.epoch + 1}) "
            f"at the learning rate {rate:.2g}; lower it (--set train.lr=...); {kept}"
        )

    def _finish_epoch(self, epoch: int, steps: int, feed: Feed, begin: float, label: str) -> EpochResult | None:
        """Validate if it is time, keep the weights if they are the best so far, write the state and the log."""
        state = self.state
        validated = self._validated(epoch)
        top1, validation_loss = self._validate(epoch, feed) if validated else (math.nan, math.nan)
        seconds = time.perf_counter() - begin
        loss = sum(gather(state.loss_sum, self.world)) / steps
        state.since.append([loss, seconds])
        state.epoch, state.step, state.loss_sum = epoch + 1, 0, 0.0
        state.seconds += seconds
        result = None
        if validated:
            first = self.optimizer.param_groups[0]
            losses, times = zip(*state.since, strict=True)
            result = EpochResult(
                epoch=epoch + 1,
                loss=statistics.fmean(losses),
                validation_loss=validation_loss,
                validation_top1=top1,
                seconds=sum(times),
            )
            row = dataclasses.asdict(result)
            state.history.append({"epoch": row.pop("epoch"), "lr": first["lr"] / first["factor"], **row})
            state.since = []
        if (time.monotonic() - self.saved_at) * _SAVE_SHARE >= self.save_seconds:
            self.save(state.seconds)
        reached = "" if math.isnan(top1) else f", validation top-1 {top1:.2%}"
        self._say(f"{label}: loss {loss:.3f}{reached}, {seconds:.1f} s")
        return result

    def _over(self) -> bool:
        """Whether validation has not risen for as long as the configuration allows; says so."""
        state, most = self.state, self.config.stop_after
        waited = [row["epoch"] for row in state.history if row["epoch"] > state.best_epoch + 1]
        if not most or len(waited) < most:
            return False
        self._say(f"{self.title}: no better than epoch {state.best_epoch + 1} in {most} validations; ends here")
        return True

    def _validated(self, epoch: int) -> bool:
        """Whether an epoch ends with a validation, which is to take a fifth of the time at most."""
        config, pictures = self.config, self.pictures
        # A step computes forwards, and backwards for twice as long.
        most = _VALIDATION_SHARE / (1 - _VALIDATION_SHARE)
        every = math.ceil(len(pictures.validation) / (3 * len(pictures.train)) / most)
        return config.schedule == "plateau" or epoch + 1 == config.epochs or (epoch + 1) % max(1, every) == 0

    def _validate(self, epoch: int, feed: Feed) -> tuple[float, float]:
        """Top-1 and mean loss on the validation images; keeps the weights if they are the best so far."""
        state, truth = self.state, self.pictures.validation.labels
        top1 = loss = math.nan
        with self.average.applied(self.model) if self.average else nullcontext():
            if len(truth):
                logits = torch.from_numpy(feed.validation_logits())
                top1 = (logits.argmax(dim=1) == truth).double().mean().item()
                loss = nn.functional.cross_entropy(logits, truth).item()
            if self.config.keep == "last" or (top1, -loss) > (state.best_top1, -state.best_loss):
                state.best_epoch, state.best_top1, state.best_loss = epoch, top1, loss
                self.best = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        return top1, loss

    @property
    def cpu_seconds(self) -> float:
        """Processor time of all threads of this process, over all sessions."""
        return self.state.cpu_seconds + time.process_time() - self.begun_cpu

    def save(self, seconds: float) -> None:
        """Write state.pt and log.csv.

        Args:
            seconds: training has taken, over all sessions.
        """
        begin = time.monotonic()
        if self.world.first:
            tensors = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best}
            if self.average is not None:
                tensors["average"] = self.average.state
            state = dataclasses.replace(self.state, seconds=seconds, cpu_seconds=self.cpu_seconds)
            write_state(self.folder / STATE, self.fingerprint, state, tensors)
            if state.history:
                write_log(self.folder / LOG, state.history)
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - begin

    def load(self) -> bool:
        """Continue where state.pt left off, if it is of this very run; whether it is."""
        path = self.folder / STATE
        if not path.is_file():
            return False
        found = read_state(path, self.fingerprint)
        if found is None:
            self._say(f"{path} belongs to a run with other settings or data; starting over")
            return False
        self.state, tensors = found
        self._use(self.state.precision)
        self.model.load_state_dict(tensors["model"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.best = {name: tensor.to(self.world.device) for name, tensor in tensors["best"].items()}
        if self.average is not None:
            self.average.state = {name: tensor.to(self.world.device) for name, tensor in tensors["average"].items()}
        inside = f" and {self.state.step} steps" if self.state.step else ""
        self._say(f"resuming after epoch {self.state.epoch}/{self.config.epochs}{inside}")
        return True

    def settle(self) -> bool:
        """Choose the precision before the first step; whether it might come out otherwise the next time."""
        begin = time.perf_counter()
        self._require(0)
        settled = settle_precision(self.model, self.config, self.objective, self.pictures, self._chunks_of(0))
        if settled.reason and self.title:
            self._say(f"{self.title}: {settled.reason}")
        self._use(settled.precision)
        self.state.seconds += time.perf_counter() - begin
        return settled.measured

    def _use(self, precision: str) -> None:
        self.state.precision = precision
        self.objective.half = precision == "bf16"

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
        layers = live_norms(self.model, config.freeze, config.epochs - 1, found=self.parts, may=self.may)
        pictures, generator = self.pictures, generator_for(config.seed, "reestimate")
        order = epoch_order(pictures.train.labels, sampler="shuffled", generator=generator)[:_NORM_IMAGES]
        # Every process looks at all of them: none waits for another, and all end with the same statistics.
        train = DecodedImages([pictures.train.samples[index] for index in order], pictures.spec)
        reestimate(
            self.model,
            list(layers.values()),
            train,
            order=range(len(train)),
            batch_size=config.batch_size,
            device=self.world.device,
        )

    def _say(self, text: str) -> None:
        if self.world.first:
            note(text)


def _chunks(order: list[int], size: int, *, least: int) -> list[list[int]]:
    """Batches; a last one of less than `least` images is left out.

    One image has no variance for BatchNorm, and each process must have some of a batch.
    """
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    return chunks[:-1] if len(chunks) > 1 and len(chunks[-1]) < least else chunks


def _pieces(inputs: Any, targets: torch.Tensor, count: int) -> Iterator[tuple[Any, torch.Tensor]]:
    """A batch in at most `count` even pieces of at least two; `inputs` is a tensor [B, ...] or a tuple of them."""
    if count == 1:
        yield inputs, targets
        return
    pieces = max(1, min(count, len(targets) // 2))
    for index in even_chunks(range(len(targets)), math.ceil(len(targets) / pieces)):
        rows = slice(index[0], index[-1] + 1)
        yield (tuple(part[rows] for part in inputs) if isinstance(inputs, tuple) else inputs[rows]), targets[rows]


def with_sync_batch_norm(model: nn.Module) -> nn.Module:
    """A network that computes the statistics of BatchNorm over all processes; its tensors are those of `model`."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    # timm's own, because its norms have an activation inside that torch's conversion would drop.
    twin: nn.Module = convert_sync_batchnorm(copy.deepcopy(model, shared))
    return twin


def _copy_modes(source: nn.Module, target: nn.Module) -> None:
    """Training or evaluation, and the momentum of BatchNorm, layer by layer."""
    for name, module in source.named_modules():
        twin = target.get_submodule(name)
        twin.training = module.training
        if is_batch_norm(module):
            twin.momentum = module.momentum  # type: ignore[assignment]
