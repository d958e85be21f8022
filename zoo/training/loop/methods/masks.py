"""Masked fine-tuning: only a chosen share of single weights may change.

The weights are chosen once, before training, by Fisher information as in Sung et al. 2021, "Training Neural Networks
with Fixed Sparse Masks" (arXiv 2111.09839), or by a simpler rule. The classifier is outside of the share and always
trained: one of new labels has nothing to keep. Buffers, like the statistics
of BatchNorm, are no weights: a mask does not hold them, `norm = "freeze"` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from zoo.base.errors import TrainingError, UsageError, unknown_name
from zoo.networks.registry import evaluating, last_layers
from zoo.networks.stages import trainable_body
from zoo.training.loop.losses import Loss

__all__ = ["Mask", "MaskedUpdate", "choose"]

_RULES = ("fisher", "gradient", "magnitude", "random")

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which weights may change."""

    fraction: float = 0.01
    """Share of the trainable weights outside of the classifier, over all layers together."""
    by: str = "fisher"
    """fisher: largest mean squared gradient of single images; gradient: largest absolute value of the mean gradient;
    magnitude: largest absolute weight; random."""
    images: int = 256
    """Training images that `fisher` and `gradient` look at; `fisher` takes one backward pass for each."""
    seed: int = 0
    """Of `random`."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise UsageError(f"mask.fraction must be in (0, 1], got {self.fraction}")
        if self.by not in _RULES:
            raise unknown_name("mask.by", self.by, _RULES)
        if self.images < 1:
            raise UsageError(f"mask.images must be at least 1, got {self.images}")


def choose(model: nn.Module, mask: Mask, batches: Iterable[Batch], loss: Loss) -> dict[str, torch.Tensor]:
    """Choose exactly round(fraction * N) of the N trainable weights outside of the classifier.

    Gradients are taken in evaluation mode, so that dropout and the statistics of BatchNorm play no part. A classifier
    whose last layer is zero passes no gradient on; then one step of gradient descent on that layer alone, over the
    same images, stands in for it: its rows point to the classes' mean features. Its size does not matter to the order.
    The model is left as it was, to the bit.

    Args:
        model: only parameters that require gradients count.
        mask: how many, and by which rule.
        batches: (network inputs float [B, C, H, W], targets [B]) on the model's device; read by `fisher` and
            `gradient` only, whatever their number.
        loss: (inputs, logits [B, K], targets) -> scalar, a mean over the batch.

    Returns:
        Parameter name -> bool, in the parameter's shape and on its device; True may change. Equal scores count in the
        order of the parameters.

    Raises:
        UsageError: the share is less than one weight, or there are no batches where the rule needs them.
        TrainingError: the gradients are not finite, or none reaches the weights.
    """
    weights = trainable_body(model)
    total = sum(weight.numel() for weight in weights.values())
    count = round(mask.fraction * total)
    if not count:
        raise UsageError(f"mask.fraction {mask.fraction} of {total} trainable weights is none; raise it")
    if mask.by == "magnitude":
        scores = [weight.detach().abs() for weight in weights.values()]
    elif mask.by == "random":
        generator = torch.Generator().manual_seed(mask.seed)
        # In float64, where equal draws are rare enough for the order of ties not to show.
        scores = [torch.rand(weight.shape, generator=generator, dtype=torch.float64) for weight in weights.values()]
    else:
        scores = _scores_from_gradients(model, list(weights.values()), mask.by, list(batches), loss)
    chosen = _largest(torch.cat([score.flatten().cpu() for score in scores]), count)
    parts = torch.split(chosen, [weight.numel() for weight in weights.values()])
    return {
        name: part.view(weight.shape).to(weight.device)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


class MaskedUpdate:
    """Holds the weights outside of a mask at their present values through any optimizer's steps."""

    def __init__(self, model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
        """Remember the weights to hold.

        Args:
            model: as it is before the first step.
            masks: from :func:`choose`; parameters that it does not name are free.

        Raises:
            TrainingError: a mask that fits no parameter; names it.
        """
        parameters = dict(model.named_parameters())
        for name, mask in masks.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                found = tuple(parameters[name].shape) if name in parameters else "no such parameter"
                raise TrainingError(f"the mask of {name} is {tuple(mask.shape)}, the network has {found}")
        self._masks = {name: mask.to(parameters[name].device) for name, mask in masks.items()}
        self._start = {name: parameters[name].detach().clone() for name in masks}

    @torch.no_grad()
    def before_step(self, model: nn.Module) -> None:
        """Set the gradients of held weights to zero, so that clipping and the optimizer's moments do not see them."""
        for name, parameter in self._held(model):
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~self._masks[name], 0)

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """Put the held weights back, bit by bit: weight decay and old momentum move them without any gradient."""
        for name, parameter in self._held(model):
            parameter.copy_(torch.where(self._masks[name], parameter, self._start[name]))

    def _held(self, model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in model.named_parameters() if name in self._masks)


def _scores_from_gradients(
    model: nn.Module, weights: Sequence[nn.Parameter], rule: str, batches: Sequence[Batch], loss: Loss
) -> list[torch.Tensor]:
    images = sum(len(inputs) for inputs, _ in batches)
    if not images:
        raise UsageError(f"mask.by = {rule!r} needs training images, got none; use 'magnitude' or 'random'")
    sums = [torch.zeros_like(weight) for weight in weights]
    with evaluating(model), _answering_classifier(model, batches, loss):
        for inputs, targets in _one_by_one(batches) if rule == "fisher" else batches:
            for part, gradient in zip(sums, _gradients(model, weights, (inputs, targets), loss), strict=True):
                if gradient is not None:
                    part += gradient.square() if rule == "fisher" else gradient * len(inputs)
    scores = [part.abs() / images for part in sums]
    if not all(score.isfinite().all() for score in scores):
        raise TrainingError("the gradients that a mask is chosen by are not finite")
    if not any(score.any() for score in scores):
        raise TrainingError(
            "no gradient reaches the weights that a mask is chosen from; use mask.by = 'magnitude' or 'random'"
        )
    return scores


def _one_by_one(batches: Iterable[Batch]) -> Iterator[Batch]:
    for inputs, targets in batches:
        yield from zip(torch.split(inputs, 1), torch.split(targets, 1), strict=True)


def _gradients(
    model: nn.Module, weights: Sequence[torch.Tensor], batch: Batch, loss: Loss
) -> tuple[torch.Tensor | None, ...]:
    inputs, targets = batch
    return torch.autograd.grad(loss(inputs, model(inputs), targets), weights, allow_unused=True)


@contextmanager
def _answering_classifier(model: nn.Module, batches: Sequence[Batch], loss: Loss) -> Iterator[None]:
    """Meanwhile, a classifier whose last layer is zero is one that tells the classes apart."""
    weights = [layer.weight for layer in last_layers(model)]
    if any(weight.any() for weight in weights):
        yield
        return
    needs = [weight.requires_grad for weight in weights]
    steps = [torch.zeros_like(weight) for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    for batch in batches:
        for step, gradient in zip(steps, _gradients(model, weights, batch, loss), strict=True):
            step -= gradient * len(batch[0]) if gradient is not None else 0
    with torch.no_grad():
        for weight, step, needed in zip(weights, steps, needs, strict=True):
            weight.requires_grad_(needed)
            weight.copy_(step / step.norm().clamp(min=torch.finfo(step.dtype).tiny))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in weights:
                weight.zero_()


def _largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at the `count` largest of the scores [N]; of equal ones the earlier."""
    least = scores.kthvalue(len(scores) - count + 1).values
    chosen = scores > least
    ties = (scores == least).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen
