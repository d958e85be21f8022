"""Classifiers on a network's pooled features, in place of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from zoo.artefact.card import Head
from zoo.base.errors import UsageError
from zoo.networks.registry import classifier, classifier_names, last_layers, zero_classifier

__all__ = ["UnitLength", "add_head", "reorder_head", "reset_head"]


class UnitLength(nn.Module):
    """Features [..., F] brought to length one, so that a linear layer of unit rows answers with cosines."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[..., F] to [..., F]."""
        return nn.functional.normalize(features, dim=-1)


def add_head(model: nn.Module, head: Head, classes: int) -> nn.Module:
    """Replace the classifier of `model` in place; its last layer is zero, so that every label is equally probable.

    An `mlp` is BatchNorm - Linear - ReLU - BatchNorm - Dropout - Linear, as fastai's create_head has it without its
    first dropout. A `cosine` is Linear - UnitLength - Linear, or without its projection UnitLength - Linear.

    Args:
        model: a network whose classifier is one linear layer on features [B, F], or a head from this function.
        head: what to put there; of a `linear` one only the kind is read.
        classes: number of labels.

    Returns:
        The new classifier.

    Raises:
        UsageError: the network's classifier is something else (several heads, a convolution).
    """
    name, width = _place(model)
    kinds = {"linear": lambda *_: nn.Linear(width, classes), "mlp": _mlp, "cosine": _cosine}
    made: nn.Module = kinds[head.kind](width, head, classes)
    made = made.to(next(model.parameters()).device).train(model.training)
    model.set_submodule(name, made)
    zero_classifier(model)
    _note_classes(model, classes)
    return made


def reset_head(model: nn.Module, classes: int) -> None:
    """Replace the classifier's last layer(s) in place by ones that are zero, for another set of labels.

    Whatever stands before them stays: the hidden layer of an `mlp`, the widths of a pruned network.
    """
    names = {module: name for name, module in model.named_modules()}
    for last in last_layers(model):
        bias = last.bias is not None
        made: nn.Module
        if isinstance(last, nn.Linear):
            made = nn.Linear(last.in_features, classes, bias=bias)
        else:
            made = nn.Conv2d(last.in_channels, classes, 1, bias=bias)
        model.set_submodule(names[last], made.to(last.weight.device))
    zero_classifier(model)
    _note_classes(model, classes)


def reorder_head(model: nn.Module, order: Sequence[int]) -> None:
    """Put the classifier's outputs in another order in place: output i becomes what output `order[i]` was."""
    with torch.no_grad():
        for last in last_layers(model):
            rows = torch.tensor(order, device=last.weight.device)
            last.weight.copy_(last.weight[rows])
            if last.bias is not None:
                last.bias.copy_(last.bias[rows])


def _cosine(width: int, head: Head, classes: int) -> nn.Module:
    projection = [nn.Linear(width, head.hidden)] if head.hidden else []
    return nn.Sequential(*projection, UnitLength(), nn.Linear(head.hidden or width, classes))


def _mlp(width: int, head: Head, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(width),
        nn.Linear(width, head.hidden),
        nn.ReLU(),
        nn.BatchNorm1d(head.hidden),
        nn.Dropout(head.dropout),
        nn.Linear(head.hidden, classes),
    )


def _place(model: nn.Module) -> tuple[str, int]:
    """The name of the classifier and the number of features it is given."""
    found, names = classifier(model), classifier_names(model)
    layers = found if isinstance(found, nn.Sequential) else [found]
    first = next((layer for layer in layers if not isinstance(layer, UnitLength)), None)
    if len(names) == 1 and isinstance(first, nn.Linear):
        return names[0], first.in_features
    if len(names) == 1 and isinstance(first, nn.BatchNorm1d):
        return names[0], first.num_features
    raise UsageError(
        f"the classifier of {type(model).__name__} ({', '.join(names)}) is no single linear layer, so no other head "
        "can be put in its place; leave `head` out, or take another architecture"
    )


def _note_classes(model: nn.Module, classes: int) -> None:
    # timm's networks keep the number beside the layer, their heads too.
    for module in model.modules():
        if isinstance(getattr(module, "num_classes", None), int):
            module.num_classes = classes  # type: ignore[assignment]
