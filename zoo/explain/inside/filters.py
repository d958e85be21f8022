"""The filters of a network's first layer: what a CNN's first convolution or a ViT's patch embedding looks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from zoo.base.errors import UsageError
from zoo.explain.panels import Panel, draw_panels
from zoo.explain.signed_colours import in_rows, signed

__all__ = ["MOST", "Filters", "draw_filters", "first_filters"]

MOST = 64
"""Filters on a page unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Filters:
    """The weights of a first layer."""

    layer: str
    weights: npt.NDArray[np.float32]
    """float32 [filters, C, h, w]; C is 3 for colours, 1 for grey."""


def first_filters(model: nn.Module, inputs: torch.Tensor) -> Filters:
    """The weights of the first convolution that a network calls.

    Args:
        model: in evaluation mode.
        inputs: any image, float32 [1, C, H, W].

    Raises:
        UsageError: its first layer with weights is no convolution of the image's own channels.
    """
    called: list[tuple[str, nn.Module]] = []

    def note(name: str, module: nn.Module) -> None:
        called.append((name, module))

    handles = [
        module.register_forward_pre_hook(lambda module, _, name=name: note(name, module))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    name, first = called[0] if called else ("", model)
    if not isinstance(first, nn.Conv2d) or first.weight.shape[1] != inputs.shape[1] or inputs.shape[1] not in (1, 3):
        raise UsageError(
            f"the first layer with weights of {type(model).__name__} is {name or 'nowhere'} ({type(first).__name__}), "
            f"expected a convolution of the image's {inputs.shape[1]} channels; "
            "see `pocketzoo explain features` for what its layers return"
        )
    return Filters(layer=name, weights=first.weight.detach().float().cpu().numpy())


def draw_filters(path: Path, found: Filters, *, name: str, most: int = MOST) -> None:
    """Draw filters with their indices, all on one scale, as PNG.

    Args:
        path: of the PNG file.
        found: what to draw.
        name: of the network.
        most: if there are more, those with the largest norm are drawn.

    Raises:
        ArtefactError: the file cannot be written.
    """
    weights = found.weights
    norms = np.sqrt((weights.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
    chosen = np.sort(np.argsort(-norms, kind="stable")[:most])
    limit = float(np.abs(weights[chosen]).max())
    panels = [Panel(image=signed(weights[index], limit), title=str(index)) for index in chosen]
    count, channels, height, width = weights.shape
    which = f"the {len(chosen)} of largest norm of its " if len(chosen) < count else "its "
    scale = "zero is grey" if channels == 3 else "blue is below zero, white at zero, red above"
    heading = (
        f"First layer of {name}: {which}{count} filters, by index. Layer {found.layer}, "
        f"weights {count} x {channels} x {height} x {width} from {weights.min():.2g} to {weights.max():.2g}; {scale}"
    )
    draw_panels(path, in_rows(panels), heading=heading, edge=0.75)
