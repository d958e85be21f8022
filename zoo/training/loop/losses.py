"""Losses over labels or soft targets. `B` is the batch size, `C` the channels, `K` the number of labels.

Every loss is the plain mean over the batch, also with class weights: torch divides by the sum of the batch's weights
instead, which makes the mean over processes that share a batch another number than the mean over the batch. The weights
of :func:`class_weights` have the mean 1 over the training images, so both agree on average.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from zoo.base.errors import DataError, UsageError

__all__ = ["Loss", "class_weights", "cross_entropy", "focal"]

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(network inputs [B, C, H, W], logits [B, K], targets: labels int64 [B] or soft float32 [B, K]) -> scalar."""


def cross_entropy(label_smoothing: float = 0.0, class_weights: torch.Tensor | None = None) -> Loss:
    """The mean over the batch of -sum over k of w_k q_k log p_k, with the targets q smoothed first.

    Args:
        label_smoothing: the share of every target that is spread evenly over all labels (Szegedy et al. 2016,
            section 7), in [0, 1].
        class_weights: float32 [K]; default: all 1.

    Raises:
        UsageError: the smoothing is out of range.
    """
    _check_smoothing(label_smoothing)
    on_device = _mover(class_weights)

    def loss(_: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weights = on_device(logits.device)
        logits = logits.float()
        losses = functional.cross_entropy(logits, targets, weights, reduction="none", label_smoothing=label_smoothing)
        return losses.mean()

    return loss


def focal(gamma: float, label_smoothing: float = 0.0, class_weights: torch.Tensor | None = None) -> Loss:
    """Focal loss: cross-entropy whose terms shrink by (1 - p_k) ** gamma (Lin et al. 2017, equation 4).

    The paper's is binary; this is its softmax form. With soft or smoothed targets every label's term -q_k log p_k has
    its own factor. The paper's alpha is `class_weights`.

    Args:
        gamma: at least 0; 0 is cross-entropy, the paper found 2 best.
        label_smoothing: as for :func:`cross_entropy`.
        class_weights: as for :func:`cross_entropy`.

    Raises:
        UsageError: gamma or the smoothing is out of range.
    """
    if not 0 <= gamma < float("inf"):
        raise UsageError(f"focal_gamma: expected a number of at least 0, got {gamma}")
    _check_smoothing(label_smoothing)
    on_device = _mover(class_weights)

    def loss(_: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        classes = logits.shape[1]
        soft = targets if targets.is_floating_point() else functional.one_hot(targets, classes)  # [B, K]
        soft = soft * (1 - label_smoothing) + label_smoothing / classes
        likelihood = functional.log_softmax(logits.float(), dim=1)  # [B, K]
        # Certain answers have the factor 0, where a power below 1 has no finite derivative.
        doubt = (-torch.expm1(likelihood)).clamp(min=torch.finfo(torch.float32).tiny)
        terms = -soft * doubt**gamma * likelihood
        weights = on_device(logits.device)
        return (terms if weights is None else terms * weights).sum(dim=1).mean()

    return loss


def class_weights(labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Weights N / (K n_k) that give every class the same sum over the images; their mean over the images is 1.

    Args:
        labels: int64 [N], of the training images.
        classes: K.

    Returns:
        float32 [K].

    Raises:
        DataError: a class has no image, so no weight could balance it.
    """
    counts = torch.bincount(labels, minlength=classes)
    if missing := torch.nonzero(counts == 0).flatten().tolist():
        raise DataError(
            f"class weights: {len(missing)} of {classes} labels have no training image (number {missing[0]}, "
            "counted from 0); add some, or train without class weights"
        )
    return (len(labels) / (classes * counts.double())).float()


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise UsageError(f"label_smoothing: expected a share from 0 to 1, got {label_smoothing}")


def _mover(weights: torch.Tensor | None) -> Callable[[torch.device], torch.Tensor | None]:
    """The weights on the device that is asked for, copied once."""
    kept = weights

    def on_device(device: torch.device) -> torch.Tensor | None:
        nonlocal kept
        kept = None if kept is None else kept.to(device)
        return kept

    return on_device
