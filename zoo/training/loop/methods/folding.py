"""BatchNorm with frozen statistics computed within the convolution before it.

Such a layer is y = a x + b for each channel, so a convolution with its weights times a and the offset b does both at
once: the same function of the same parameters, with the same gradients but for rounding, without writing and reading
a feature map in between. Inference graphs are made so (Jacob et al. 2018, arXiv 1712.05877, section 3.2); here it is
formed anew at each step, since scale, offset and weights are trained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers.conv2d_same import conv2d_same
from torch import nn

from zoo.networks.cutting.tracing import restored

__all__ = ["folded"]

Hook = torch.utils.hooks.RemovableHandle

_TOLERANCE = 1e-3
"""Of the largest logit: rounding stays far below, a feature map that somebody else reads as well goes far beyond."""


@contextmanager
def folded(model: nn.Module, norms: Collection[str], example: torch.Tensor) -> Iterator[int]:
    """Compute BatchNorm layers within the convolutions before them meanwhile, where that changes nothing.

    Parameters, buffers and their names stay what they are.

    Args:
        model: the network, in any mode.
        norms: names of the BatchNorm layers that are in evaluation mode whenever the network is called.
        example: input float32 [B, C, H, W] of noise, on which the result is compared.

    Yields:
        How many layers are folded: 0 where one of them turned out to be read by more than one other layer.
    """
    wanted = {id(model.get_submodule(name)) for name in norms}
    with restored(model), torch.no_grad():
        model.eval()
        pairs, before = _pairs(model, example)
        pairs = [(convolution, norm) for convolution, norm in pairs if id(norm) in wanted]
        _patch(pairs)
        try:
            after = model(example)
        except RuntimeError:
            after = torch.full_like(before, torch.nan)
        _restore(pairs)
    same = (after - before).abs().max() <= _TOLERANCE * before.abs().max()
    pairs = pairs if same else []
    _patch(pairs)
    try:
        yield len(pairs)
    finally:
        _restore(pairs)


def _pairs(model: nn.Module, example: torch.Tensor) -> tuple[list[tuple[nn.Conv2d, nn.Module]], torch.Tensor]:
    """Each convolution whose result goes into a BatchNorm as it is, with that; and the logits."""
    results: dict[int, tuple[nn.Conv2d, torch.Tensor]] = {}
    found: list[tuple[nn.Conv2d, nn.Module]] = []

    def remember(module: nn.Module, _: Any, result: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        results[id(result)] = module, result  # the reference keeps the id from being used again

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if (pair := results.pop(id(inputs[0]), None)) is not None:
            found.append((pair[0], module))

    hooks: list[Hook] = []
    for module in model.modules():
        if type(module) in (nn.Conv2d, Conv2dSame):
            hooks.append(module.register_forward_hook(remember))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            hooks.append(module.register_forward_pre_hook(look))
    try:
        logits: torch.Tensor = model(example)
    finally:
        for hook in hooks:
            hook.remove()
    # A layer that is called twice, with two others, is left alone.
    times = [id(module) for pair in found for module in pair]
    return [pair for pair in found if all(times.count(id(module)) == 1 for module in pair)], logits


def _patch(pairs: list[tuple[nn.Conv2d, nn.Module]]) -> None:
    for convolution, norm in pairs:
        # As attributes of the modules themselves, before their classes' methods.
        vars(convolution)["forward"] = _both(convolution, norm)
        vars(norm)["forward"] = _rest(norm)


def _restore(pairs: list[tuple[nn.Conv2d, nn.Module]]) -> None:
    for pair in pairs:
        for module in pair:
            vars(module).pop("forward", None)


def _both(convolution: nn.Conv2d, norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def forward(inputs: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight
        center = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
        offset = -center * scale if norm.bias is None else torch.addcmul(norm.bias, center, scale, value=-1)
        weight = convolution.weight * scale.view(-1, 1, 1, 1)
        if isinstance(convolution, Conv2dSame):
            settings = convolution.stride, convolution.padding, convolution.dilation, convolution.groups
            found: torch.Tensor = conv2d_same(inputs, weight, offset, *settings)
            return found
        return convolution._conv_forward(inputs, weight, offset)  # type: ignore[no-any-return]

    return forward


def _rest(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """What such a layer of timm does besides normalising."""

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if not isinstance(norm, BatchNormAct2d):
            return inputs
        dropped = norm.drop(inputs)
        in_place = isinstance(norm.act, nn.ReLU6) and norm.act.inplace
        activated: torch.Tensor = _ReLU6.apply(dropped) if in_place else norm.act(dropped)
        return activated

    return forward


class _ReLU6(torch.autograd.Function):
    """ReLU6 in place; torch's own, with gradients, writes the feature map twice more."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        ctx.mark_dirty(inputs)
        ctx.save_for_backward(inputs.clamp_(0, 6))
        return inputs

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (outputs,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, outputs, 0, 6)  # type: ignore[no-any-return]
