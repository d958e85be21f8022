"""The layers of a network by name: what they return for an image, and which of it belongs to which place.

Letters in shapes: B images, C channels, h and w places (pixels of a feature map, or patches), N tokens, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from zoo.base.errors import ArtefactError, UsageError, unknown_name
from zoo.explain.inside.attention_maps import tokens_of
from zoo.networks.cutting.truncate import channels_last

__all__ = ["Places", "check_output", "find_layer", "layer_output", "places_of"]


@dataclass(frozen=True, kw_only=True)
class Places:
    """How a layer's output is spread over the image."""

    layout: str
    """`maps` for [B, C, h, w], `maps, channels last` for [B, h, w, C], `tokens` for [B, N, C]."""
    grid: tuple[int, int]
    """Rows h and columns w."""
    prefix: int = 0
    """Tokens before those of the patches: class token, distillation token, registers."""

    def maps(self, output: torch.Tensor) -> torch.Tensor:
        """The output as feature maps [B, C, h, w], without the tokens that stand for no place."""
        if self.layout == "tokens":
            patches = output[:, self.prefix :]  # [B, h w, C]
            return patches.transpose(1, 2).reshape(len(patches), -1, *self.grid)  # [B, C, h, w]
        return output.permute(0, 3, 1, 2) if self.layout == "maps, channels last" else output

    def back(self, maps: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Feature maps [B, C, h, w] in the layout of `output`, which they were taken from."""
        if self.layout == "tokens":
            patches = maps.permute(0, 2, 3, 1).flatten(1, 2)  # [B, h w, C]
            return torch.cat([output[:, : self.prefix], patches], dim=1)  # [B, N, C]
        return maps.permute(0, 2, 3, 1) if self.layout == "maps, channels last" else maps


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """A layer by its name in `named_modules`.

    Raises:
        UsageError: there is none of this name.
    """
    known: dict[str, nn.Module] = {
        path: module
        for path, module in model.named_modules(remove_duplicate=False)
        if path and type(module) not in (nn.ModuleList, nn.ModuleDict)
    }
    if name not in known:
        raise UsageError(f"{unknown_name('layer', name, known)} `pocketzoo explain summary` lists them")
    return known[name]


def layer_output(model: nn.Module, inputs: torch.Tensor, layer: str) -> torch.Tensor:
    """What a layer returns for images; of a layer that is called several times, the last time.

    Args:
        model: in evaluation mode.
        inputs: float32 [B, channels, H, W].
        layer: its name.

    Raises:
        UsageError: there is no such layer, the network does not call it, or it returns no tensor.
    """
    seen: list[Any] = []
    # A copy: what comes next may work in place.
    handle = find_layer(model, layer).register_forward_hook(
        lambda _, __, output: seen.append(output.clone() if isinstance(output, torch.Tensor) else output)
    )
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        handle.remove()
    return check_output(model, layer, seen)


def check_output(model: nn.Module, layer: str, outputs: Sequence[object]) -> torch.Tensor:
    """The last of what a layer returned, a tensor.

    Args:
        model: the network, for messages.
        layer: its layer's name, for messages.
        outputs: of every call of the layer.

    Raises:
        UsageError: the layer was not called, or returned no tensor.
    """
    if not outputs:
        raise UsageError(f"{type(model).__name__} does not call its layer {layer!r}; take another one")
    last = outputs[-1]
    if not isinstance(last, torch.Tensor):
        raise UsageError(f"layer {layer!r} returns {type(last).__name__}, expected a tensor; take another one")
    return last


def places_of(model: nn.Module, layer: str, output: torch.Tensor, inputs: torch.Tensor) -> Places:
    """Where in the image the parts of a layer's output belong.

    Args:
        model: the network.
        layer: its layer's name, for messages.
        output: of that layer, for `inputs`.
        inputs: images [B, channels, H, W].

    Raises:
        UsageError: the output is neither feature maps nor tokens of an image.
    """
    refusal = UsageError(
        f"the output of layer {layer!r} is {list(output.shape)}, expected maps [B, C, H, W] or tokens [B, N, C] of "
        f"{len(inputs)} images; take a layer that is further out, like a whole block (`pocketzoo explain summary` "
        "lists the layers and their shapes)"
    )
    if len(output) != len(inputs) or output.ndim not in (3, 4):
        raise refusal
    if output.ndim == 4:
        if channels_last(model, output):
            return Places(layout="maps, channels last", grid=(output.shape[1], output.shape[2]))
        return Places(layout="maps", grid=(output.shape[2], output.shape[3]))
    try:
        tokens = tokens_of(model, output.shape[1], (inputs.shape[2], inputs.shape[3]))
    except ArtefactError as error:
        raise refusal from error
    known = next((module.num_prefix_tokens for module in model.modules() if hasattr(module, "num_prefix_tokens")), None)
    if known is not None and tokens.prefix not in (0, known):
        raise refusal
    return Places(layout="tokens", grid=tokens.grid, prefix=tokens.prefix)
