"""Networks by name: our own small ones, and every name that timm knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import zoo.models.lenet  # noqa: F401 (fills OWN)
from zoo.card import Input, Resize
from zoo.errors import UsageError, unknown_name
from zoo.models.register import OWN

__all__ = [
    "as_keywords",
    "build",
    "classifier",
    "classifier_width",
    "count_macs",
    "input_channels",
    "input_for",
    "names",
    "zero_classifier",
]

_FILE_ARGUMENTS = frozenset({"cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"})
"""What timm's create_model would read or download: a card that asks for it must not be obeyed."""


def names() -> list[str]:
    """Every name that :func:`build` accepts."""
    return sorted([*OWN, *timm.list_models()])


def build(architecture: str, *, classes: int, channels: int, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """A network with random weights that maps float32 [B, channels, H, W] to logits [B, classes].

    Raises:
        UsageError: unknown name (with close matches), or arguments the architecture does not take.
    """
    if files := sorted(_FILE_ARGUMENTS & set(arguments or {})):
        raise UsageError(f"{files[0]!r} is no argument of an architecture; weights are given with --weights")
    known = names()
    base = architecture.split(".")[0]
    if base not in known:
        raise unknown_name("model", architecture, known)
    try:
        if base in OWN:
            return OWN[base](classes=classes, channels=channels, **(arguments or {}))
        model: nn.Module = timm.create_model(
            architecture, pretrained=False, num_classes=classes, in_chans=channels, **as_keywords(arguments or {})
        )
        return model
    except (TypeError, RuntimeError, ValueError, AssertionError) as error:
        raise UsageError(f"cannot build {architecture} with the arguments {dict(arguments or {})}: {error}") from error


def as_keywords(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a card or recipe as timm takes them."""
    # Cards and recipes are JSON and TOML, which know lists only; timm compares some arguments with tuples.
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


def classifier(model: nn.Module) -> nn.Module:
    """The layer(s) that turn features into logits; what a new set of labels replaces."""
    find = getattr(model, "get_classifier", None)
    head = find() if find else None
    if not isinstance(head, nn.Module):
        raise UsageError(f"{type(model).__name__} has no classifier module (`get_classifier`)")
    return head


def zero_classifier(model: nn.Module) -> None:
    """Set the classifier's last layer to zero: every label equally probable, whatever the features.

    A random one would send its noise into pretrained weights at the first steps; the scale that timm draws some heads
    with grows as the labels get fewer. Zero is how Google fine-tunes (big_vision's configs/transfer.py).
    """
    last = [module for module in classifier(model).modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def classifier_width(model: nn.Module) -> int | None:
    """Number of outputs of the classifier's last layer."""
    layers = [module for module in classifier(model).modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    return layers[-1].weight.shape[0] if layers else None


def input_channels(model: nn.Module) -> int:
    """Number of colours that the first convolution takes."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    return first.in_channels


def input_for(architecture: str, *, colour: str, size: int | None, photographs: bool) -> Input:
    """The preprocessing that suits an architecture: timm's data configuration where it has one.

    Args:
        architecture: a registered name.
        colour: "RGB" or "L".
        size: edge of the square input in pixels; None: what the network was pretrained with.
        photographs: resize the shorter edge and crop the centre, as in pretraining; else stretch the whole picture
            to the input, which keeps all of a small one.
    """
    channels = {"RGB": 3, "L": 1}[colour]
    config = timm.get_pretrained_cfg(architecture, allow_unregistered=True) if timm.is_model(architecture) else None
    mean, std = (config.mean, config.std) if config and channels == 3 else ((0.5,) * channels, (0.5,) * channels)
    edge = size or (config.input_size[-1] if config else 28)
    kernel = config.interpolation if config and config.interpolation in ("bilinear", "bicubic") else "bilinear"
    if photographs:
        # timm rounds the resized edge down: timm.data.transforms_factory.transforms_imagenet_eval
        crop_pct = (config.crop_pct if config else None) or 0.875
        resize = Resize(rule="shorter", edge=int(edge / crop_pct), filter=kernel)
    else:
        resize = Resize(rule="stretch", filter=kernel)
    return Input(
        colour=colour,
        size=(edge, edge),
        resize=resize,
        crop="centre" if photographs else "none",
        mean=tuple(mean),
        std=tuple(std),
    )


def count_macs(model: nn.Module, spec: Input) -> int:
    """Multiply-accumulates of one example, counted by torch (convolutions, matrix products, attention)."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *spec.shape, device=device))
    finally:
        model.train(training)
    return int(counter.get_total_flops()) // 2
