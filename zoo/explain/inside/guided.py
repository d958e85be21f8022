"""Guided backpropagation: which pixels excite a unit (Springenberg et al. 2015, arXiv 1412.6806, section 3.4).

On the way back a ReLU passes a gradient only where its input was positive (backpropagation) and where the gradient
itself is positive (deconvolution). Captum (GuidedBackprop) puts the second half on, at `nn.ReLU` modules. Networks
write ReLUs as functions too, in place, with a cap (ReLU6), or on a tensor that other layers read as well, where a hook
on the input would cut those layers' gradients also. So each ReLU of a network, however it is written, is led through
one `nn.ReLU` on a copy of its input while the network runs; the network itself is not changed.

The rule says nothing of other activations. A network without any ReLU is refused; one with some (MobileNetV3) has it
there, and the plain gradient elsewhere.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from captum.attr import NeuronGuidedBackprop
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from zoo.base.errors import UsageError
from zoo.explain.panels import Panel, draw_panels
from zoo.explain.signed_colours import in_rows, signed
from zoo.explain.structure.spatial_layout import find_layer, layer_output, places_of
from zoo.networks.cutting.tracing import without_gradients_of_weights

__all__ = ["MOST", "Guided", "Unit", "draw_guided", "guided"]

MOST = 10
"""Units unless told otherwise."""

_RELUS = (functional.relu, functional.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit of a layer and the pixels that excite it."""

    index: int
    """Its channel, or feature."""
    place: tuple[int, int] | None
    """Row and column where it is most active; None in a layer without places."""
    activation: float
    """There."""
    gradient: npt.NDArray[np.float32]
    """float32 [C, H, W], with respect to the normalised image."""


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Units of a layer, explained for one image."""

    layer: str
    units: tuple[Unit, ...]
    count: int
    """Number of units that the layer has."""
    relus: int
    """ReLUs up to the layer, at which the rule held."""
    named: bool = False
    """The units were asked for; else they are the most active ones."""


def guided(
    model: nn.Module, inputs: torch.Tensor, layer: str, *, units: Sequence[int] | None = None, most: int = MOST
) -> Guided:
    """Guided backpropagation from units of a layer, each where it is most active, to an image.

    Args:
        model: in evaluation mode; stays as it is.
        inputs: one image, float32 [1, C, H, W].
        layer: its name; returns maps, tokens or a vector.
        units: indices of channels or features; None: the `most` most active ones, most active first.
        most: see `units`.

    Raises:
        UsageError: there is no such layer or unit, or the network has no ReLU.
    """
    output = layer_output(model, inputs, layer)
    to_maps = _maps(model, layer, output, inputs)
    maps = to_maps(output)[0]  # [C, h, w]
    peaks, spots = maps.flatten(1).max(dim=1)  # [C]
    if units is None:
        chosen = torch.argsort(-peaks, stable=True)[:most].tolist()
    else:
        _check_units(units, len(maps), layer)
        chosen = list(units)
    found: list[Unit] = []
    wrapper = _Guided(model, find_layer(model, layer))
    with without_gradients_of_weights(model):
        for index in chosen:
            place = divmod(int(spots[index]), maps.shape[2])
            gradient = _gradient(wrapper, inputs, functools.partial(_at, to_maps, index, place))
            found.append(
                Unit(
                    index=index,
                    place=None if output.ndim == 2 else place,
                    activation=float(peaks[index]),
                    gradient=gradient,
                )
            )
    return Guided(layer=layer, units=tuple(found), count=len(maps), relus=wrapper.before, named=units is not None)


def draw_guided(
    path: Path,
    found: Guided,
    image: npt.NDArray[np.uint8],
    *,
    name: str,
    title: str,
    labels: Mapping[int, str] | None = None,
) -> None:
    """Draw an image and the gradients of units as PNG.

    Args:
        path: of the PNG file.
        found: what to draw; each gradient on its own scale, up to the 99 % quantile of what is not zero.
        image: the image as the network sees it, uint8 [H, W, 3].
        name: of the network.
        title: of the image.
        labels: what units are called, where they are the network's answers.

    Raises:
        ArtefactError: the file cannot be written.
    """
    panels = [Panel(image=image, title=title)]
    for unit in found.units:
        called = (labels or {}).get(unit.index, f"unit {unit.index}")
        where = f" at {unit.place[0]}, {unit.place[1]}" if unit.place else ""
        text = f"{called}{where}\nactivation {unit.activation:.3g}"
        panels.append(Panel(image=signed(unit.gradient, _limit(unit.gradient)), title=text))
    many = len(found.units)
    which = (
        f"{many} of its {found.count} units" if found.named else f"the {many} most active of its {found.count} units"
    )
    colours = len(found.units[0].gradient) == 3
    scale = "grey is 0, brighter" if colours else "white is 0, red"
    scale += f" raises the activation, {'darker' if colours else 'blue'} lowers it"
    places = ", each at the row and column where it is most active" if found.units[0].place else ""
    through = f"through {found.relus} ReLU{'s' * (found.relus != 1)}" if found.relus else "no ReLU before it: gradient"
    heading = f"Guided backpropagation from layer {found.layer} of {name} ({through}): {which}{places}; {scale}"
    draw_panels(path, in_rows(panels), heading=heading)


def _limit(gradient: npt.NDArray[np.float32]) -> float:
    magnitudes = np.abs(gradient[gradient != 0])
    # A few pixels have most of it; on a scale up to the largest one the others could not be seen.
    return float(np.quantile(magnitudes, 0.99)) if len(magnitudes) else 0.0


class _Guided(nn.Module):
    """Runs a network with its ReLUs led through one module that Captum hooks."""

    def __init__(self, network: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        # In a tuple torch does not see them as parts of this module, whose ReLUs Captum would hook once more.
        self.parts = (network, layer)
        self.count = 0
        """ReLUs met so far."""
        self.before = 0
        """Those before the layer's output."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the network returns for images [B, C, H, W]."""
        network, layer = self.parts
        self.count = 0
        handle = layer.register_forward_hook(lambda *_: setattr(self, "before", self.count))
        try:
            with _Led(self):
                return cast(torch.Tensor, network(images))
        finally:
            handle.remove()


class _Led(TorchFunctionMode):
    """Leads every ReLU to a module, out of place."""

    def __init__(self, through: _Guided) -> None:
        super().__init__()
        self.through = through

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _RELUS:
            return self._relu(args[0] if args else kwargs["input"])
        if func is functional.relu6:
            return self._relu(args[0] if args else kwargs["input"]).clamp(max=6.0)
        if func is functional.hardtanh:  # what nn.ReLU6 calls
            low, high = self._limits(*args[1:], **kwargs)
            if low == 0:
                return self._relu(args[0]).clamp(max=high)
        return func(*args, **kwargs)

    @staticmethod
    def _limits(min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> tuple[float, float]:
        return min_val, max_val

    def _relu(self, values: torch.Tensor) -> torch.Tensor:
        if not values.requires_grad:  # of weights alone, like Swin's tables of positions
            return torch.relu(values)
        self.through.count += 1
        return cast(torch.Tensor, self.through.relu(values.clone()))


def _gradient(
    wrapper: _Guided, inputs: torch.Tensor, select: Callable[[torch.Tensor], torch.Tensor]
) -> npt.NDArray[np.float32]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Setting backward hooks on ReLU activations")
        attributed = NeuronGuidedBackprop(wrapper, wrapper.parts[1]).attribute(
            inputs.detach().clone().requires_grad_(), select
        )
    if not wrapper.count:
        raise UsageError(
            f"{type(wrapper.parts[0]).__name__} has no ReLU, and guided backpropagation is a rule about ReLUs; "
            "see `pocketzoo explain gradcam`, or `pocketzoo explain attention` for a vision transformer"
        )
    return np.asarray(attributed[0].detach().float().cpu().numpy(), dtype=np.float32)


def _at(
    to_maps: Callable[[torch.Tensor], torch.Tensor], unit: int, place: tuple[int, int], output: torch.Tensor
) -> torch.Tensor:
    return to_maps(output)[:, unit, place[0], place[1]]


def _maps(
    model: nn.Module, layer: str, output: torch.Tensor, inputs: torch.Tensor
) -> Callable[[torch.Tensor], torch.Tensor]:
    """From the layer's output to [B, C, h, w]; a vector [B, F] has one place."""
    if output.ndim == 2 and len(output) == len(inputs):
        return lambda vector: vector[:, :, None, None]
    return places_of(model, layer, output, inputs).maps


def _check_units(units: Sequence[int], count: int, layer: str) -> None:
    for unit in units:
        if not 0 <= unit < count:
            raise UsageError(f"layer {layer!r} has no unit {unit}, expected a number from 0 to {count - 1}")
    if not units:
        raise UsageError(f"no unit of layer {layer!r} is named, expected some, like 3,17")
