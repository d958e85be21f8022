"""Feature maps: what the channels of a layer make of one image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from zoo.explain.panels import Panel, draw_panels
from zoo.explain.signed_colours import in_rows
from zoo.explain.structure.spatial_layout import layer_output, places_of

__all__ = ["MOST", "Features", "draw_features", "feature_maps", "strongest"]

MOST = 32
"""Channels on a page unless told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a layer returns for an image."""

    layer: str
    shape: tuple[int, ...]
    """Of the layer's output for one image."""
    maps: npt.NDArray[np.float32]
    """float32 [C, h, w]."""
    prefix: int
    """Tokens that the maps leave out, since they stand for no place: class token, registers."""


def feature_maps(model: nn.Module, inputs: torch.Tensor, layer: str) -> Features:
    """A layer's output for one image as feature maps.

    Args:
        model: in evaluation mode.
        inputs: one image, float32 [1, channels, H, W].
        layer: its name.

    Raises:
        UsageError: there is no such layer, or its output is neither maps nor tokens.
    """
    output = layer_output(model, inputs, layer)
    places = places_of(model, layer, output, inputs)
    maps = places.maps(output)[0].float().cpu().numpy()
    return Features(layer=layer, shape=tuple(output.shape[1:]), maps=maps, prefix=places.prefix)


def strongest(maps: npt.NDArray[np.float32], most: int) -> npt.NDArray[np.int64]:
    """The channels of the largest mean magnitude, strongest first: int64 [min(most, C)] of maps [C, h, w]."""
    return np.argsort(-np.abs(maps).mean(axis=(1, 2)), kind="stable")[:most]


def draw_features(
    path: Path, found: Features, image: npt.NDArray[np.uint8], *, name: str, title: str, most: int = MOST
) -> None:
    """Draw an image and the strongest channels of a layer as PNG.

    Args:
        path: of the PNG file.
        found: what to draw.
        image: the image as the network sees it, uint8 [H, W, 3].
        name: of the network.
        title: of the image.
        most: number of channels; see :func:`strongest`.

    Raises:
        ArtefactError: the file cannot be written.
    """
    chosen = strongest(found.maps, most)
    panels = [Panel(image=image, title=title)]
    for channel in chosen:
        values = found.maps[channel]
        panels.append(Panel(image=values, title=f"{channel}\n{values.min():.2g} to {values.max():.2g}"))
    count = len(found.maps)
    which = f"the {len(chosen)} strongest of {count} channels" if len(chosen) < count else f"all {count} channels"
    left_out = f"; without {found.prefix} token{'s' * (found.prefix > 1)} of no place" if found.prefix else ""
    heading = (
        f"Layer {found.layer} of {name} ({' x '.join(map(str, found.shape))}{left_out}): {which} by mean magnitude, "
        "strongest first; below each number its range, dark to bright"
    )
    draw_panels(path, in_rows(panels), heading=heading, edge=1.0)
