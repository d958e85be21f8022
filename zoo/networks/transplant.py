"""An old classifier on new features: what another training left of a network's former task."""

from __future__ import annotations

import copy

import torch
from torch import nn

from zoo.base.errors import ArtefactError
from zoo.networks.registry import classifier_names

__all__ = ["classifier_tensors", "transplant_head"]


def classifier_tensors(model: nn.Module) -> frozenset[str]:
    """The state-dict names of the classifier's parameters and buffers."""
    return frozenset(
        f"{prefix}.{name}" for prefix in classifier_names(model) for name in model.get_submodule(prefix).state_dict()
    )


def transplant_head(body: nn.Module, head_from: nn.Module) -> nn.Module:
    """A new network: `body`'s features under `head_from`'s classifier.

    Everything that is not the classifier comes from `body`, the statistics of BatchNorm included.

    Args:
        body: gives the features; not changed.
        head_from: gives the architecture and the classifier; not changed. Both may have other labels.

    Raises:
        ArtefactError: they differ in more than their classifiers; names the first tensor.
    """
    grafted = copy.deepcopy(head_from)
    own, other = classifier_tensors(head_from), classifier_tensors(body)
    features = {name: tensor for name, tensor in body.state_dict().items() if name not in other}
    state = grafted.state_dict()
    expected = {name: tensor for name, tensor in state.items() if name not in own}
    for name in sorted(set(features) ^ set(expected)):
        place = "body" if name in features else "network with the classifier"
        raise ArtefactError(
            f"a classifier fits the features it was trained with: only the {place} has {name!r}; "
            "give two networks of one architecture, with LoRA adapters merged"
        )
    for name, tensor in features.items():
        if tensor.shape != expected[name].shape:
            raise ArtefactError(
                f"{name}: {tuple(tensor.shape)} in the body, {tuple(expected[name].shape)} in the network with the "
                "classifier; give two networks of one architecture, pruned alike"
            )
    with torch.no_grad():
        for name, tensor in features.items():
            state[name].copy_(tensor)
    return grafted
