"""Optimizers, learning rates per stage, and learning-rate schedules by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from zoo.base.errors import TrainingError, UsageError, unknown_name
from zoo.networks.stages import Stage

__all__ = ["OPTIMIZERS", "SCHEDULES", "WEIGHT_DECAY", "ladder", "make_optimizer", "make_schedule", "plateau"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9),
    "nag": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    # Fused, SGD fails where layers join later (torch 2.15: "expected Tensor", of a momentum that is not there yet).
    "adam": functools.partial(torch.optim.Adam, fused=True),
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
}

WEIGHT_DECAY = {"sgd": 1e-4, "nag": 1e-4, "adam": 0.0, "adamw": 0.05, "nadam": 0.0, "radam": 0.0}
"""Where none is asked for. Only AdamW's is decoupled (Loshchilov & Hutter 2019, arXiv 1711.05101); the others add it to
the gradient, where 0.05 would outweigh the loss: 1e-4 is that of He et al. 2016, section 3.4, and Adam's division by
the gradient's size makes of it something else altogether."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "plateau": lambda progress: 1.0,
    "step": lambda progress: 0.1 ** int(progress * 3),
}
"""Share of training done (0..1) -> factor of the learning rate, after the warm-up. What `plateau` does besides depends
on the validation loss; see :func:`plateau`."""


def ladder(
    stages: Sequence[Stage], *, head_factor: float = 1.0, layer_decay: float = 1.0, rates: Sequence[float] = ()
) -> dict[str, float]:
    """Factor of the learning rate of each parameter.

    Args:
        stages: from input to classifier.
        head_factor: fixed ladder: the classifier learns so many times faster than the rest.
        layer_decay: geometric ladder: each stage before the classifier learns by this factor slower than the one after
            it (BEiT, Bao et al. 2021, arXiv 2106.08254, appendix; 0.65 to 0.75 there, 0.75 to 0.9 suits supervised
            pretraining).
        rates: explicit ladder: the factors of the classifier, the stage before it, and so on; the last one holds for
            all stages before. Instead of the other two.

    Raises:
        UsageError: a factor that is not positive, or two kinds of ladder at once.
    """
    if rates and (head_factor != 1 or layer_decay != 1):
        raise UsageError("give train.rates, or train.head_factor and train.layer_decay, not both")
    for name, value in (("head_factor", head_factor), ("layer_decay", layer_decay), *(("rates", r) for r in rates)):
        if not 0 < value < math.inf:
            raise UsageError(f"train.{name} must be a positive number, got {value}")
    factors: dict[str, float] = {}
    for depth, stage in enumerate(reversed(stages)):
        falling = head_factor if depth == 0 else layer_decay**depth
        factor = rates[min(depth, len(rates) - 1)] if rates else falling
        factors |= dict.fromkeys(stage.parameters, factor)
    return factors


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float | None = None,
    factors: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer of everything trainable, each parameter decayed or not as timm does it.

    Not decayed are biases, what has one dimension, and what the network's `no_weight_decay()` names: class tokens,
    positions, tables of relative positions.

    Args:
        name: one of OPTIMIZERS.
        model: its parameters with `requires_grad`.
        lr: learning rate.
        weight_decay: decoupled or not, as the optimizer has it; None: that of WEIGHT_DECAY.
        factors: parameter name -> factor of its rate; 1 where it is not named. Each parameter group has it as `factor`.

    Raises:
        UsageError: unknown name.
        TrainingError: the model has nothing trainable.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    weight_decay = WEIGHT_DECAY[name] if weight_decay is None else weight_decay
    names = {parameter: name for name, parameter in model.named_parameters()}
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for group in param_groups_weight_decay(model, weight_decay, no_weight_decay_list=spared):
        for parameter in group["params"]:
            kind = (group["weight_decay"], (factors or {}).get(names[parameter], 1.0))
            groups.setdefault(kind, []).append(parameter)
    if not groups:
        raise TrainingError("every parameter is frozen; there is nothing to train")
    return OPTIMIZERS[name](
        [
            {"params": members, "weight_decay": decay, "factor": factor, "lr": lr * factor}
            for (decay, factor), members in groups.items()
        ],
        lr=lr,
    )


def make_schedule(name: str, *, warmup: float) -> Callable[[float], float]:
    """A function from the share of training done (0..1) to the factor of the learning rate.

    Args:
        name: one of SCHEDULES; `one-cycle` is cosine with a warm-up of at least 0.2 (after Smith & Topin 2017).
        warmup: share of training in which the rate rises linearly from 0.
    """
    if name == "one-cycle":
        name, warmup = "cosine", max(warmup, 0.2)
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, [*SCHEDULES, "one-cycle"])
    if not 0 <= warmup < 1:
        raise UsageError(f"warmup must be a share of training in [0, 1), got {warmup}")
    after = SCHEDULES[name]

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        return after((progress - warmup) / (1 - warmup))

    return factor


def plateau(losses: Sequence[float], *, patience: int) -> float:
    """The factor 0.1 ** n, where n counts how often the loss did not fall for `patience` epochs on end.

    Args:
        losses: validation loss of each epoch so far.
        patience: epochs.
    """
    best, waited, drops = math.inf, 0, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == patience:
            drops, waited = drops + 1, 0
    return float(0.1**drops)
