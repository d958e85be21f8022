"""Whole residual blocks: which of a network's can go, and which the loss lets go.

A residual block adds what its branch computes to what it is given, so that without the branch its input is handed on.
That is measured, not read off class names: of a block whose parameters are all zero, nothing but the shortcut is left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from compress.prune.couplings import BLOCK, Part
from compress.prune.cutting import Structure
from compress.prune.proof import one_thread, provable, randomize
from compress.prune.widths import OutOfReachError
from zoo.base.progress import note, track
from zoo.data.decoded import DecodedImages, outputs
from zoo.networks.shrink import drop_blocks
from zoo.networks.stages import is_batch_norm
from zoo.training.loop.methods.norms import even_chunks, reestimate

__all__ = ["chosen_blocks", "residual_blocks"]

_BATCH = 64
"""Images at once; BatchNorm normalises with the statistics of so many while its own are measured."""


def residual_blocks(structure: Structure, shape: Sequence[int]) -> list[Part]:
    """The blocks with an identity shortcut, in the network's order: each was proved, alone and with all others.

    Of nested ones the innermost, so that a stage of blocks is not taken for one.

    Args:
        structure: of a network of which nothing was removed yet; stays as it is.
        shape: of one input, without the batch.
    """
    passed = _handing_on(structure.model, shape)
    inner = [name for name in passed if not any(other.startswith(f"{name}.") for other in passed)]
    return provable(structure, [Part(name=name, kind=BLOCK, units=((0,),)) for name in inner], shape)[0]


def chosen_blocks(
    model: nn.Module,
    prices: Mapping[Part, float],
    images: DecodedImages,
    cut: Callable[[Sequence[Part]], nn.Module],
) -> list[Part]:
    """The blocks to drop, so that the network cut to its goal has the smallest loss; none where widths alone do better.

    Blocks are ranked by how much the loss rises without each, per price, on one half of the images. On the other half
    the network cut without the first 1, 2, 4 ... of them is held against the one cut with all; BatchNorm of each is
    measured anew on the first half before.

    Args:
        model: in evaluation mode; stays as it is.
        prices: what each of its blocks saves, in whatever the goal counts; see :func:`residual_blocks`.
        images: labelled training images without augmentation, in random order.
        cut: makes a network that costs what it may from the blocks to drop.
    """
    one, other = range(0, len(images), 2), range(1, len(images), 2)
    if not prices or not other:
        return []
    ranked = _ranked(model, prices, images, one)
    best: list[Part] = []
    least = math.inf
    for count in (0, *(2**power for power in range(len(prices).bit_length()))):
        tried = ranked[:count]
        try:
            loss = _loss(_settled(cut(tried), images, one), images, other)
        except OutOfReachError:  # Of the widths; with fewer blocks it may not be.
            continue
        note(
            f"loss {loss:.3f}"
            + (f" without {', '.join(block.name for block in tried)}" if tried else " by widths alone")
        )
        if loss < least:
            best, least = tried, loss
    return best


def _ranked(model: nn.Module, prices: Mapping[Part, float], images: DecodedImages, order: Sequence[int]) -> list[Part]:
    whole = _loss(copy.deepcopy(model), images, order)
    rises: dict[Part, float] = {}
    for block in track(prices, total=len(prices), description="Blocks"):
        # Of copies: networks keep what they computed in evaluation, too.
        without = copy.deepcopy(model)
        drop_blocks(without, [block.name])
        rises[block] = _loss(without, images, order) - whole
    return sorted(prices, key=lambda block: rises[block] / prices[block])


def _loss(model: nn.Module, images: DecodedImages, order: Sequence[int]) -> float:
    """Mean cross-entropy over some of the images."""
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits = torch.cat(list(outputs(model, images.spec, images.batches(even_chunks(order, _BATCH)), device)))
        return float(functional.cross_entropy(logits.cpu(), images.labels[list(order)]))


def _settled(model: nn.Module, images: DecodedImages, order: Sequence[int]) -> nn.Module:
    """The network, its BatchNorm statistics measured over some of the images."""
    if layers := [module for module in model.modules() if is_batch_norm(module)]:
        device = next(model.parameters()).device
        reestimate(model, layers, images, order=order, batch_size=_BATCH, device=device)
    return model


def _handing_on(model: nn.Module, shape: Sequence[int]) -> list[str]:
    """The modules that return their input when their parameters are zero, wherever they are called."""
    probed = copy.deepcopy(model).eval()
    randomize(probed)
    device = next(probed.parameters()).device
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(1, *shape, generator=generator, dtype=torch.float64).to(device)
    passed: dict[str, bool] = {}
    probing = False

    def probe(name: str, module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        nonlocal probing
        if probing or not passed.get(name, True):
            return
        probing = True
        try:
            passed[name] = _hands_on(module, given, keywords)
        finally:
            probing = False

    for name, module in probed.named_modules():
        # A layer alone is no block, nor are gates and norms with a shortcut (GRN).
        layered = any(parameter.ndim > 1 for parameter in module.parameters())
        if name and layered and any(True for _ in module.children()):
            module.register_forward_pre_hook(
                lambda module, given, keywords, name=name: probe(name, module, given, keywords), with_kwargs=True
            )
    with one_thread(), torch.no_grad():
        probed(images)
    return [name for name, right in passed.items() if right]


def _hands_on(module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    if not given or not isinstance(given[0], torch.Tensor):
        return False
    parameters = list(module.parameters())
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.zero_()
        output = module.forward(given[0].clone(), *given[1:], **keywords)
    except Exception:  # what a module does with zeros is open
        return False
    finally:
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    return isinstance(output, torch.Tensor) and output.shape == given[0].shape and torch.equal(output, given[0])
