"""A classifier that begins as a logistic regression on the features before it: linear probing, then fine-tuning.

From a classifier of zeros the first steps pull good features towards nothing in particular; from one that fits them,
fine-tuning distorts them less (Kumar et al. 2022, arXiv 2202.10054), and a hundred steps are saved.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import nn

from zoo.base.errors import UsageError
from zoo.networks.registry import classifier, evaluating, last_layers

__all__ = ["fit_head"]

_STRENGTH = 1e-3
"""Inverse regularisation (scikit-learn's C) for standardised features: far more than the best probe has, so that
fine-tuning starts from unsure answers."""
_ITERATIONS = 100


def fit_head(model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """Fit the last layer of each head in place, on what it is given in evaluation mode.

    Args:
        model: its classifier is one linear layer, or several whose answers it averages.
        batches: inputs float32 [B, C, H, W] on the model's device and labels int64 [B].

    Returns:
        How many images were looked at.

    Raises:
        UsageError: a head has layers before its last one, which nothing has fitted.
    """
    layers = last_layers(model)
    inner = [part for part in classifier(model).modules() if next(part.parameters(recurse=False), None) is not None]
    if not layers or len(inner) > len(layers):
        raise UsageError(
            f"train.head_start = 'probe' fits a linear classifier, that of {type(model).__name__} has {len(inner)} "
            "layers; leave it out, or take a linear head"
        )
    features: list[list[torch.Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, found=found: found.append(inputs[0].flatten(1).cpu()))
        for layer, found in zip(layers, features, strict=True)
    ]
    labels = []
    try:
        with evaluating(model), torch.inference_mode():
            for inputs, targets in batches:
                model(inputs)
                labels.append(targets.cpu())
    finally:
        for hook in hooks:
            hook.remove()
    truth = torch.cat(labels)
    for layer, found in zip(layers, features, strict=True):
        _fit(layer, torch.cat(found).float(), truth)
    return len(truth)


def _fit(layer: nn.Linear | nn.Conv2d, features: torch.Tensor, labels: torch.Tensor) -> None:
    if features.shape[1] * len(layer.weight) != layer.weight.numel():
        raise UsageError(
            f"train.head_start = 'probe': expected {layer.weight[0].numel()} features before the classifier, got "
            f"{features.shape[1]}: it answers for every place of an image; leave it out"
        )
    present = torch.unique(labels)
    if len(present) < 2:
        return  # nothing to tell apart
    # Without an offset of its own the layer cannot take one in.
    mean = features.mean(dim=0) if layer.bias is not None else torch.zeros(features.shape[1])
    std = (features - mean).square().mean(dim=0).sqrt().clamp(min=1e-6)
    solver = LogisticRegression(C=_STRENGTH, max_iter=_ITERATIONS, fit_intercept=layer.bias is not None)
    with warnings.catch_warnings():
        # Where it stops is a start, no result.
        warnings.simplefilter("ignore", ConvergenceWarning)
        solver.fit(((features - mean) / std).numpy(), labels.numpy())
    coefficients, intercepts = solver.coef_, solver.intercept_
    if len(present) == 2:
        # One row says how much speaks for the second of two.
        coefficients, intercepts = np.stack([-coefficients[0], coefficients[0]]) / 2, np.repeat(intercepts, 2) / 2
        intercepts[0] *= -1
    weight = torch.from_numpy(coefficients).float() / std
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[present] = weight.view(len(present), *layer.weight.shape[1:]).to(layer.weight)
        if layer.bias is not None:
            bias = torch.from_numpy(intercepts).float() - weight @ mean
            layer.bias.fill_(bias.min())  # labels without an image are as improbable as the least probable
            layer.bias[present] = bias.to(layer.bias)
