"""L2-SP: weight decay towards the pretrained weights instead of towards zero.

Li, Grandvalet & Davoine 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks"
(arXiv 1802.01483), section 3, without the second term: the classifier has no starting point, its decay is the
optimizer's. Ordinary weight decay pulls the other weights to zero at the same time; set it to zero to pull them to
their start only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from zoo.base.errors import TrainingError
from zoo.networks.stages import trainable_body

__all__ = ["l2sp", "starting_point"]


def starting_point(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the trainable parameters outside of the classifier, by name."""
    return {name: parameter.detach().clone() for name, parameter in trainable_body(model).items()}


def l2sp(model: nn.Module, start: Mapping[str, torch.Tensor], strength: float) -> torch.Tensor:
    """strength / 2 * sum of (w - w0)^2 over the trainable parameters outside of the classifier.

    Args:
        model: frozen parameters and buffers count nothing.
        start: parameter name -> w0, on the parameter's device; from :func:`starting_point`.
        strength: alpha of the paper.

    Returns:
        A scalar, with gradients.

    Raises:
        TrainingError: `start` lacks a parameter, or has it in another shape; names it.
    """
    squares = []
    for name, parameter in trainable_body(model).items():
        first = start.get(name)
        if first is None or first.shape != parameter.shape:
            found = "none" if first is None else f"one of shape {tuple(first.shape)}"
            raise TrainingError(
                f"L2-SP needs the starting value of {name}, shape {tuple(parameter.shape)}, and has {found}; "
                "take starting_point() of this very network before its first step"
            )
        squares.append(nn.functional.mse_loss(parameter, first, reduction="sum"))
    if not squares:
        return torch.zeros((), device=next(model.parameters()).device)
    return torch.stack(squares).sum() * (strength / 2)
