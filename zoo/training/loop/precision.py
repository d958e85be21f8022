"""The precision of a training: the one that is asked for, or the one that is faster on this machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from zoo.base.machine import processor
from zoo.networks.registry import evaluating
from zoo.training.loop.config import FitConfig
from zoo.training.loop.distributed import gather
from zoo.training.loop.feeds import TrainingImages, WholeFeed
from zoo.training.loop.objective import Objective

__all__ = ["Settled", "settle_precision"]

_STEPS_WORTH_MEASURING = 100
"""Shorter trainings do not look whether bf16 is faster."""
_ROUNDS = 3
"""Steps in either precision, of which the fastest counts."""
_LEAST_GAIN = 1.15
"""Below that, the rounding is not worth it."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What precision a run trains in."""

    precision: str
    """float32 or bf16."""
    measured: bool = False
    """Whether it might come out otherwise the next time."""
    reason: str = ""
    """A sentence, where there was something to decide."""


def settle_precision(
    model: nn.Module, config: FitConfig, objective: Objective, pictures: TrainingImages, chunks: Sequence[Sequence[int]]
) -> Settled:
    """The precision that a configuration asks for; for `auto` on a processor that has bf16, the faster one.

    Args:
        model: stays as it is; only what requires gradients is computed backwards.
        config: how it will be trained.
        objective: what a step minimises.
        pictures: of which one batch is computed a few times.
        chunks: the batches of the first epoch.
    """
    device = pictures.world.device
    if config.precision != "auto":
        return Settled(precision=config.precision)
    if device.type == "cuda":
        # Older GPUs emulate it, slowly.
        return Settled(precision="bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32")
    native = {"avx512_bf16", "amx_bf16"} & set(processor()["flags"])
    if device.type != "cpu" or not native or config.epochs * len(chunks) < _STEPS_WORTH_MEASURING:
        return Settled(precision="float32")
    # Processes that train together decide the same.
    gain = statistics.median(gather(_gain(model, config, objective, pictures, chunks[0]), pictures.world))
    chosen = "bf16" if gain > _LEAST_GAIN else "float32"
    reason = f"{chosen}, as a step in bf16 is {gain:.2f} times as fast as in float32"
    return Settled(precision=chosen, measured=True, reason=reason)


def _gain(
    model: nn.Module, config: FitConfig, objective: Objective, pictures: TrainingImages, chunk: Sequence[int]
) -> float:
    """How many times faster a step is in bf16 than in float32."""
    inputs, targets = next(WholeFeed(model, model, pictures).batches(0, [chunk], 0))
    piece = slice(math.ceil(len(targets) / config.accumulate))
    seconds = {"float32": math.inf, "bf16": math.inf}
    # In evaluation no statistics move and nothing is dropped.
    with evaluating(model):
        for precision in (*seconds,) * _ROUNDS:
            objective.half = precision == "bf16"
            begin = time.perf_counter()
            objective(model, inputs[piece], targets[piece], None, 0.0).backward()  # type: ignore[no-untyped-call]
            seconds[precision] = min(seconds[precision], time.perf_counter() - begin)
    model.zero_grad(set_to_none=True)
    return seconds["float32"] / seconds["bf16"]
