"""The learning-rate range test: raise the rate step by step, watch the loss, suggest a rate, leave no trace.

Smith 2017, "Cyclical Learning Rates for Training Neural Networks" (arXiv 1506.01186), section 3.3, with an exponential
instead of a linear rise, which looks at every order of magnitude equally long. `S` is the number of steps.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn

from zoo.base.errors import TrainingError, UsageError
from zoo.base.figures import axes
from zoo.base.progress import track
from zoo.base.seeds import generator_for
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages, canvas, epoch_order
from zoo.networks.stages import eval_frozen, trained_at
from zoo.training.loop.config import FitConfig, loss_of, optimizer_of
from zoo.training.loop.distributed import World, pick_device
from zoo.training.loop.feeds import TrainingImages, WholeFeed
from zoo.training.loop.losses import Loss
from zoo.training.loop.methods import l2sp as penalty
from zoo.training.recipe import Run
from zoo.training.stage import starting_point

__all__ = ["Curve", "RangeTest", "Suggestions", "draw", "find_rate", "range_test", "suggest", "untouched"]


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """How far and how finely the rate is raised."""

    low: float = 1e-7
    """First learning rate."""
    high: float = 10.0
    """Last learning rate, unless the loss explodes before."""
    steps: int = 100
    """Batches from `low` to `high`."""
    momentum: float = 0.9
    """Of the running mean of the loss that is watched for an explosion."""
    stop: float = 4.0
    """The test ends when the running mean exceeds its lowest value so many times."""

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise UsageError(f"expected learning rates 0 < --low < --high, got {self.low:g} and {self.high:g}")
        if self.steps < 10:
            raise UsageError(f"--steps must be at least 10 for a slope to be seen, got {self.steps}")
        if not 0 <= self.momentum < 1:
            raise UsageError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.stop <= 1:
            raise UsageError(f"stop must exceed 1, got {self.stop}")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The loss at each rate; three lists of one length of at most S."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    """Of the batches, before the step at that rate."""
    smooth: tuple[float, ...]
    """The same without the noise of single batches."""


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """Three usual readings of a curve, as learning rates."""

    steepest: float
    """Where the loss falls fastest per order of magnitude."""
    valley: float
    """The middle of the longest fall, from where a twentieth of it is done: on the whole the most robust."""
    minimum_tenth: float
    """A tenth of the rate at which the loss is lowest: there it is about to diverge."""


def find_rate(run: Run, dataset: Dataset, parent: Path | None, config: RangeTest | None = None) -> Curve:
    """The range test of a recipe's run, with its own network, layers to train, optimizer, augmentation and loss.

    With gradual unfreezing it looks at the first epoch. A mask and unlabelled images are left out.

    Args:
        run: what would be trained.
        dataset: its data.
        parent: the checkpoint of `run.start`.
        config: range and number of steps.

    Raises:
        UsageError, DataError, ArtefactError, TrainingError: see zoo.training.stage.train and :func:`range_test`.
    """
    fit = run.train.for_images(len(dataset.splits["train"]))
    model, card = starting_point(run, dataset, parent)
    spec = card.use.input
    device = pick_device()
    model.to(device)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    trained = trained_at(model, fit.freeze, 0) & wanted
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    optimizer = optimizer_of(model, fit)
    model.train()
    eval_frozen(model, fit.freeze, 0)
    train = DecodedImages(dataset.splits["train"], canvas(spec))
    pictures = TrainingImages(
        train=train,
        validation=train,
        spec=spec,
        augment=fit.augment,
        classes=len(dataset.labels),
        seed=fit.seed,
        world=World(0, 1, device),
        memory_format=torch.contiguous_format,
    )
    loss = _with_penalty(loss_of(fit, train.labels, len(dataset.labels)), model, fit)
    return range_test(model, optimizer, _endless(model, pictures, fit), loss, config, clip=fit.clip)


def range_test(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    loss: Loss,
    config: RangeTest | None = None,
    *,
    clip: float = 0.0,
) -> Curve:
    """Train one step per learning rate, and put everything back.

    Model (weights, buffers, gradients), optimizer and the random state of torch, NumPy and Python are bit for bit what
    they were.

    Args:
        model: in the mode it is to be trained in.
        optimizer: of the model; each of its groups learns `factor` times the rate, where it has that key.
        batches: endless (inputs [B, C, H, W], targets), on the model's device.
        loss: of inputs, logits and targets.
        config: range and number of steps.
        clip: largest norm of the gradient; 0: no limit.

    Raises:
        TrainingError: the first loss is not finite already, or the batches run out.
    """
    config = config or RangeTest()
    rates = np.geomspace(config.low, config.high, config.steps).tolist()
    losses: list[float] = []
    mean, lowest = 0.0, math.inf
    with untouched(model, optimizer):
        for step, (rate, (inputs, targets)) in enumerate(_paired(rates, batches)):
            value = loss(inputs, model(inputs), targets)
            number = float(value.detach())
            if not math.isfinite(number):
                break
            losses.append(number)
            mean = config.momentum * mean + (1 - config.momentum) * number
            unbiased = mean / (1 - config.momentum ** (step + 1))
            lowest = min(lowest, unbiased)
            if unbiased > config.stop * lowest:
                break
            _step(model, optimizer, value, rate, clip)
    if not losses:
        raise TrainingError("the loss is not finite before the first step; look at the data and the first weights")
    return Curve(rates=tuple(rates[: len(losses)]), losses=tuple(losses), smooth=_smooth(losses, config))


def suggest(curve: Curve) -> Suggestions:
    """Read a curve.

    Raises:
        TrainingError: the loss never falls, so that there is nothing to suggest.
    """
    logs = np.log10(np.array(curve.rates))
    smooth = np.array(curve.smooth)
    lowest = int(smooth.argmin())
    fall = _longest_fall(curve.smooth[: lowest + 1])
    # Less than a hundredth of the first loss is noise, whatever its sign.
    if len(fall) < 3 or smooth[0] - smooth[lowest] < 0.01 * abs(smooth[0]):
        raise TrainingError(
            f"the loss does not fall between the rates {curve.rates[0]:.1g} and {curve.rates[-1]:.1g} "
            f"({smooth[0]:.3f} to {smooth[lowest]:.3f}); take more steps (--steps), or look at data and labels"
        )
    # Rates too low to change anything are no part of the valley, however long they go down by a hair.
    begun = smooth[fall[0]] - 0.05 * (smooth[fall[0]] - smooth[lowest])
    fall = [index for index in fall if smooth[index] <= begun]
    slopes = np.gradient(smooth[: lowest + 1], logs[: lowest + 1])
    return Suggestions(
        steepest=float(10 ** logs[int(slopes.argmin())]),
        valley=float(10 ** ((logs[fall[0]] + logs[fall[-1]]) / 2)),
        minimum_tenth=float(10 ** (logs[lowest] - 1)),
    )


def draw(curve: Curve, found: Suggestions, path: Path, *, title: str, current: float | None = None) -> None:
    """Loss over learning rate as PNG, with the suggestions marked.

    Args:
        curve: what was measured.
        found: what it suggests.
        path: of the image.
        title: above it.
        current: the learning rate that the recipe has, to compare.
    """
    marks = {
        "steepest": (found.steepest, "tab:orange", "v"),
        "valley": (found.valley, "tab:green", "o"),
        "minimum / 10": (found.minimum_tenth, "tab:red", "s"),
    }
    with axes(path) as plot:
        plot.plot(curve.rates, curve.losses, color="lightsteelblue", linewidth=1, label="one batch")
        plot.plot(curve.rates, curve.smooth, color="tab:blue", linewidth=2, label="smoothed")
        for name, (rate, colour, marker) in marks.items():
            height = float(np.interp(math.log(rate), np.log(curve.rates), curve.smooth))
            plot.plot(
                [rate], [height], marker, color=colour, markersize=9, linestyle="none", label=f"{name}: {rate:.1e}"
            )
        if current is not None:
            plot.axvline(current, color="grey", linestyle="--", linewidth=1, label=f"recipe: {current:.1e}")
        bottom, top = min(curve.smooth), min(max(curve.smooth), 1.5 * curve.smooth[0])
        plot.set_ylim(bottom - 0.1 * (top - bottom), top + 0.1 * (top - bottom))
        plot.set_xscale("log")
        plot.set_xlabel("learning rate")
        plot.set_ylabel("training loss")
        plot.set_title(title)
        plot.grid(alpha=0.3)
        plot.legend()


@contextmanager
def untouched(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Afterwards weights, buffers, gradients, modes, optimizer and random state are bit for bit as before."""
    weights = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
    gradients = {name: _copy(parameter.grad) for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    state = copy.deepcopy(optimizer.state_dict())
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in _tensors(model):
                    tensor.copy_(weights[name])
            for name, parameter in model.named_parameters():
                parameter.grad = gradients[name]
            for name, module in model.named_modules():
                module.training = modes[name]
            optimizer.load_state_dict(state)
            random.setstate(python)
            np.random.set_state(numpy_state)


def _with_penalty(loss: Loss, model: nn.Module, fit: FitConfig) -> Loss:
    if not fit.l2sp:
        return loss
    start = penalty.starting_point(model)

    def penalised(inputs: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return loss(inputs, logits, targets) + penalty.l2sp(model, start, fit.l2sp)

    return penalised


def _endless(model: nn.Module, pictures: TrainingImages, fit: FitConfig) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of one size, epoch after epoch; drawn as in training."""
    feed = WholeFeed(model, model, pictures)
    size = min(fit.batch_size, len(pictures.train))
    for epoch in itertools.count():
        generator = generator_for(fit.seed, epoch, "order")
        order = epoch_order(pictures.train.labels, sampler=fit.sampler, generator=generator)
        # An incomplete batch has a noisier loss, and one of a single image no variance for BatchNorm.
        chunks = [order[begin : begin + size] for begin in range(0, len(order) - size + 1, size)]
        yield from feed.batches(epoch, chunks, 0)


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _copy(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.detach().clone()


def _paired(rates: list[float], batches: Iterable[Any]) -> Iterator[tuple[float, Any]]:
    source = iter(batches)
    for step, rate in enumerate(track(rates, total=len(rates), description="Learning rates")):
        try:
            yield rate, next(source)
        except StopIteration:
            raise TrainingError(f"the training images ran out after {step} of {len(rates)} steps") from None


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, value: torch.Tensor, rate: float, clip: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    optimizer.zero_grad(set_to_none=True)
    value.backward()  # type: ignore[no-untyped-call]
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def _smooth(losses: list[float], config: RangeTest) -> tuple[float, ...]:
    """A centred mean: a running one lags behind, and would suggest rates that are too high."""
    decades = math.log10(config.high / config.low)
    width = max(1.0, config.steps / decades / 4)
    return tuple(gaussian_filter1d(np.array(losses), width, mode="nearest").tolist())


def _longest_fall(values: tuple[float, ...]) -> list[int]:
    """Indices of a longest strictly falling subsequence (patience sorting, O(S log S))."""
    tails: list[float] = []
    ends: list[int] = []
    before: list[int] = []
    for index, value in enumerate(values):
        place = bisect_left(tails, -value)
        before.append(ends[place - 1] if place else -1)
        tails[place : place + 1] = [-value]
        ends[place : place + 1] = [index]
    chain = []
    index = ends[-1] if ends else -1
    while index >= 0:
        chain.append(index)
        index = before[index]
    return chain[::-1]
