"""Run a network on shapes alone (the meta device), to learn its outputs and the sizes it takes, without computing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.artefact.card import Input
from zoo.base.errors import UsageError
from zoo.networks.registry import build, evaluating

__all__ = ["REFUSALS", "check_size", "declared_size", "run_on_shapes", "smaller_size", "smallest_input"]

REFUSALS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError, ZeroDivisionError)
"""What networks raise on a size they do not take."""

_MOST = 1024
"""The largest edge in pixels that is tried."""


def run_on_shapes(model: nn.Module, channels: int, size: tuple[int, int], *, batch: int = 2) -> Any:
    """What `model` returns in evaluation mode for zeros [batch, channels, *size], as tensors without content.

    A network with an operation that cannot do without content is run on the CPU.
    """
    with evaluating(model), torch.no_grad():
        try:
            # A copy: swapping tensors in place leaves empty ones behind in modules that have several names (CoaT).
            return _without_content(model)(torch.empty(batch, channels, *size, device="meta"))
        except NotImplementedError:
            return model(torch.zeros(batch, channels, *size, device=next(model.parameters()).device))


def _without_content(model: nn.Module) -> nn.Module:
    tensors = [*model.parameters(), *model.buffers()]
    # What deepcopy finds here it takes for copied already, so that no content is.
    empty: dict[int, Any] = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in tensors}
    empty |= {id(tensor): nn.Parameter(empty[id(tensor)], requires_grad=False) for tensor in model.parameters()}
    return copy.deepcopy(model, empty)


def declared_size(model: nn.Module) -> tuple[int, int]:
    """Height and width in pixels that a network was built for, as it states them: its `img_size`, or timm's record."""
    for owner in (getattr(model, "patch_embed", None), model):
        size = getattr(owner, "img_size", None)
        if isinstance(size, int):
            return size, size
        if isinstance(size, tuple) and len(size) == 2:
            return size
    config = getattr(model, "pretrained_cfg", None) or {}
    size = config.get("input_size") if isinstance(config, dict) else getattr(config, "input_size", None)
    return (size[-2], size[-1]) if size else (224, 224)


def smallest_input(architecture: str, arguments: dict[str, Any] | None = None, channels: int = 3) -> int:
    """The smallest edge in pixels of a square input that an architecture takes.

    A network of one size only (a ViT without `dynamic_img_size`) answers with that size. One that cuts images into
    patches is tried at multiples of its patch.

    Raises:
        UsageError: see zoo.networks.registry.build; or no size up to 1,024 pixels works.
    """
    return _smallest(build(architecture, classes=2, channels=channels, arguments=arguments), architecture, channels)


def check_size(model: nn.Module, architecture: str, spec: Input) -> None:
    """Check that a network takes images of the card's input size.

    Args:
        model: stays as it is.
        architecture: its name, for the message.
        spec: the input; `size` and the number of colours are read.

    Raises:
        UsageError: it does not: what it takes, and which setting to change.
    """
    reason = _refusal(model, spec.channels, spec.size)
    if reason is None:
        return
    given = f"{architecture} does not take {spec.size[0]} x {spec.size[1]} pixels"
    given += "" if spec.size[0] == spec.size[1] else " (height x width)"
    height, width = declared_size(model)
    if _fixed(model, spec.channels):
        remedy = _built_for(architecture, spec)
        raise UsageError(f"{given}: it is built for {height} x {width}; set size={_written(height, width)}{remedy}")
    smallest = _smallest(model, architecture, spec.channels)
    if min(spec.size) < smallest:
        raise UsageError(f"{given}: it needs at least {smallest} pixels; raise `size` (--set size={smallest})")
    raise UsageError(f"{given}, though {smallest} would do: {reason}; choose a multiple of its patch or window")


def smaller_size(model: nn.Module, spec: Input, scale: float) -> tuple[int, int] | None:
    """Height and width of about `scale` times the input's, in whole patches or strides of the network.

    Args:
        model: stays as it is.
        spec: the input; `size` and the number of colours are read.
        scale: of the edges, below 1.

    Returns:
        The size; None where the network does not take it, or rounding leaves nothing smaller.
    """
    unit = _patch(model)
    if unit == 1:
        # Most networks without patches halve an image five times; of a small one less has to be enough.
        unit = 32
        while unit > 1 and min(spec.size) < 4 * unit:
            unit //= 2
    height, width = (round(scale * edge / unit) * unit for edge in spec.size)
    smaller = 0 < height < spec.size[0] and 0 < width < spec.size[1]
    return (height, width) if smaller and _refusal(model, spec.channels, (height, width)) is None else None


def _built_for(architecture: str, spec: Input) -> str:
    """How to build an architecture for another size, if it can be told one."""
    try:
        asked = spec.size[0] if spec.size[0] == spec.size[1] else spec.size
        build(architecture, classes=2, channels=spec.channels, arguments={"img_size": asked})
    except UsageError as error:
        return "" if "unexpected keyword" in str(error) else f" ({error})"
    return f", or build it for yours with --set arguments.img_size={_written(*spec.size)}"


def _written(height: int, width: int) -> str:
    return f"{height}" if height == width else f"[{height},{width}]"


def _smallest(model: nn.Module, architecture: str, channels: int) -> int:
    def takes(edge: int) -> bool:
        return _refusal(model, channels, (edge, edge)) is None

    if _fixed(model, channels):
        return max(declared_size(model))
    unit = _patch(model)
    units = _first(lambda count: takes(count * unit), _MOST // unit)
    if units is not None:
        return units * unit
    # Windows may want a size that no power of two meets; the size it was made for does, or a part of it.
    whole = max(declared_size(model))
    edge = next((whole * part // 16 for part in range(1, 17) if takes(whole * part // 16)), None)
    if edge is None:
        raise UsageError(f"{architecture} took no square input of up to {_MOST} pixels; another architecture is needed")
    while edge > 1 and takes(edge - 1):
        edge -= 1
    return edge


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest count that holds, if whatever is larger than one that holds does so too."""
    high = 1
    while not holds(high):
        if high >= most:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _fixed(model: nn.Module, channels: int) -> bool:
    """Whether a network takes its declared size but not twice as much."""
    height, width = declared_size(model)
    return (
        _refusal(model, channels, (height, width)) is None
        and _refusal(model, channels, (2 * height, 2 * width)) is not None
    )


def _patch(model: nn.Module) -> int:
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    return max(patch) if isinstance(patch, tuple) else int(patch) if isinstance(patch, int) else 1


def _refusal(model: nn.Module, channels: int, size: tuple[int, int]) -> str | None:
    """Why a network does not take images of a size; None: it does."""
    try:
        output = run_on_shapes(model, channels, size)
    except REFUSALS as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None if isinstance(output, torch.Tensor) and output.ndim == 2 else "its output is no vector of logits"
