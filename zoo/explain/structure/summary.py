"""A network layer by layer: shapes, parameters, multiply-accumulates, and what of it was trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from zoo.artefact.card import Input
from zoo.base.errors import UsageError
from zoo.networks.registry import counting, empty_input

__all__ = ["FP32_BYTES", "Layer", "layers_of"]

FP32_BYTES = 4
"""Size of a parameter in FP32."""

_PASSES_ON = (nn.Identity, nn.modules.dropout._DropoutNd)
"""Layers that return what they get, outside of training."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A module, and what is its own: what it does itself, not what the layers inside of it do."""

    name: str
    """Path in the network; "" is the network itself."""
    kind: str
    """Name of its class."""
    output: tuple[int, ...] | None
    """Shape of what it returns for one image, the batch of 1 included (of several tensors the first); None: it is not
    called by itself, because another layer uses its parameters."""
    parameters: int
    """Shared ones are counted at the first layer that has them."""
    trained: int | None
    """How many of them were trained; None: not known layer by layer."""
    macs: int
    """Multiply-accumulates of one image."""


class _Watch:
    """Hooks that give the operations counted so far to the innermost module at work."""

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter
        self.flops: dict[nn.Module, int] = {}
        self.shapes: dict[nn.Module, tuple[int, ...]] = {}
        self.stack: list[nn.Module] = []
        self.seen = 0

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self._settle()
        self.stack.append(module)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._settle()
        self.stack.pop()
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]
        if shapes:
            self.shapes.setdefault(module, shapes[0])

    def _settle(self) -> None:
        total = int(self.counter.get_total_flops())
        if self.stack:
            self.flops[self.stack[-1]] = self.flops.get(self.stack[-1], 0) + total - self.seen
        self.seen = total


@contextmanager
def _watched(model: nn.Module, counter: FlopCounterMode) -> Iterator[_Watch]:
    watch = _Watch(counter)
    handles = []
    try:
        for module in model.modules():
            # Outside of all other hooks, so that what these compute belongs to their layer.
            handles.append(module.register_forward_pre_hook(watch.enter, prepend=True))
            handles.append(module.register_forward_hook(watch.leave))
        yield watch
    finally:
        for handle in handles:
            handle.remove()


def layers_of(
    model: nn.Module, spec: Input | Sequence[int], *, trained: Collection[str] | None = None, depth: int | None = None
) -> list[Layer]:
    """Every layer that has parameters or computes something, in the order in which the network defines them.

    Their `macs` add up to zoo.networks.registry.count_macs: what a module computes without a layer of its own for it
    (attention, a product of two tensors) counts as its own. Identities and dropout are left out.

    Args:
        model: stays as it is.
        spec: its input, or the shape of one without the batch.
        trained: names of the parameters that were trained; None: not known.
        depth: modules deeper than so many parts of a name are added to the one that they are in; None: no one is.

    Raises:
        UsageError: depth is less than 1.
    """
    if depth is not None and depth < 1:
        raise UsageError(f"--depth must be at least 1 (the network's own parts), got {depth}")
    with counting(model) as counter, _watched(model, counter) as watch:
        model(empty_input(model, spec))
    modules = dict(model.named_modules())
    # Shared parameters have the name under which the network lists them first, as in `named_parameters`.
    sizes = {path: parameter.numel() for path, parameter in model.named_parameters()}
    owned: dict[str, list[str]] = {}
    for path in sizes:
        owned.setdefault(path.rpartition(".")[0], []).append(path)
    groups: dict[str, list[str]] = {}
    for name, module in modules.items():
        works = module in watch.shapes and not any(module.children()) and not isinstance(module, _PASSES_ON)
        if name in owned or watch.flops.get(module, 0) or works:
            groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    found = []
    for group, names in groups.items():
        paths = [path for name in names for path in owned.get(name, [])]
        found.append(
            Layer(
                name=group,
                kind=type(modules[group]).__name__,
                output=watch.shapes.get(modules[group]),
                parameters=sum(sizes[path] for path in paths),
                trained=None if trained is None else sum(sizes[path] for path in paths if path in trained),
                macs=sum(watch.flops.get(modules[name], 0) for name in names) // 2,
            )
        )
    return found
