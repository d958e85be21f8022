"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from zoo.errors import TrainingError, UsageError, unknown_name

__all__ = ["OPTIMIZERS", "SCHEDULES", "make_optimizer", "make_schedule"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, **options),
    "nag": lambda groups, **options: torch.optim.SGD(groups, momentum=0.9, nesterov=True, **options),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
}

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "step": lambda progress: 0.1 ** int(progress * 3),
}
"""Share of training done (0..1) -> factor of the learning rate, after the warm-up."""


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    faster: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer of everything trainable; biases, norms and embeddings of one dimension are not decayed.

    Each parameter group has a `factor` beside its rate: that of `faster`, else 1.

    Raises:
        UsageError: unknown name.
        TrainingError: the model has nothing trainable.
    """
    if name not in OPTIMIZERS:
        raise unknown_name("optimizer", name, OPTIMIZERS)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise TrainingError("every parameter is frozen; there is nothing to train")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in trainable:
        key = (weight_decay if parameter.ndim > 1 else 0.0, (faster or {}).get(parameter, 1.0))
        groups.setdefault(key, []).append(parameter)
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
