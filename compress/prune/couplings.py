"""Which channels of a network hang together: from torch-pruning's dependency graph to parts that can be cut.

What goes together with a channel is decided here: the same offset in every group of a grouped convolution (the number
of groups stays, each gets narrower), whole heads of an attention layer, or the same dimension of each of its heads.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from timm.layers import Attention
from torch import nn
from torch_pruning import ops

from zoo.base.errors import ArtefactError
from zoo.networks.shrink import is_depthwise

__all__ = ["Cut", "Part", "is_attention", "parts_of", "traced"]

_REMEDY = "export the network unpruned (pocketzoo export)"
_CONVOLUTION = nn.modules.conv._ConvNd
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_UNKNOWN = (nn.RNNBase, nn.RNNCellBase, nn.Embedding, nn.EmbeddingBag, nn.Bilinear)
"""Layers whose channels are not cut, although torch-pruning has rules for some of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One group of coupled channels that can be cut."""

    name: str
    """The layer it is named after."""
    kind: str
    """`channel`, `hidden unit`, `head`, `head dimension` or `embedding`."""
    units: tuple[tuple[int, ...], ...]
    """Unit -> the root's channels that go together."""
    multiple: int = 1
    """The number of units left must be a multiple of this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """The channels of one side of one layer, or of a parameter that belongs to no layer, that a part reaches."""

    path: str
    """Of the layer; for a parameter, of the module that owns it."""
    name: str
    """`out` or `in`, or the parameter's name."""
    axis: int | None
    """Of a parameter; None for a side of a layer."""
    total: int
    """Number of channels before anything was cut."""
    channels: tuple[int, ...]
    roots: tuple[int, ...]
    """The root's channel that each of `channels` goes with."""

    @property
    def place(self) -> tuple[str, str]:
        """What two cuts have in common that shorten the same side."""
        return self.path, self.name


def is_attention(module: nn.Module) -> bool:
    """Whether a module is timm's plain attention, the one whose heads can be cut."""
    return isinstance(module, Attention) and type(module).forward is Attention.forward


@contextmanager
def traced(model: nn.Module, shape: Sequence[int]) -> Iterator[tuple[tp.DependencyGraph, nn.Parameter]]:
    """The dependency graph of a network for two inputs of `shape` (without the batch), and those inputs.

    Training mode and which parameters want gradients are what they were before when this ends.

    Raises:
        ArtefactError: layers that the graph has no right rules for, that a forward pass does not reach, or a network
            that cannot be run or followed.
    """
    _refuse_unknown(model)
    modes = [(module, module.training) for module in model.modules()]
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    like = next(model.parameters())
    # As a parameter, so that a channel that reaches the input shows in its group.
    images = nn.Parameter(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        with _quiet():
            try:
                graph = tp.DependencyGraph().build_dependency(
                    model.eval(),
                    example_inputs=images,
                    forward_fn=lambda network, inputs: network(inputs),
                    # A step of its own after each output, so that channels that are outputs show in their group.
                    output_transform=lambda outputs: [output * 1 for output in tp.utils.flatten_as_list(outputs)],
                    unwrapped_parameters=[(images, 1)],
                    # Shared by all heads, as wide as one: no channel of the attention layer's.
                    ignored_layers=[
                        part for module in model.modules() if is_attention(module) for part in _head_norms(module)
                    ],
                )
            except Exception as error:
                raise ArtefactError(
                    f"{type(model).__name__} cannot be pruned: it cannot be run and followed on inputs of shape "
                    f"{tuple(shape)} ({type(error).__name__}: {error}); {_REMEDY}"
                ) from error
            _refuse_unreached(model, graph)
            yield graph, images
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, training in modes:
            module.training = training


def parts_of(
    graph: tp.DependencyGraph, model: nn.Module, images: nn.Parameter, embedding: bool
) -> Iterator[tuple[Part, list[Cut]]]:
    """Every part of a network with what it cuts, in the order of the network's layers.

    Raises:
        ArtefactError: grouped convolutions that share channels with others in a way that no cut could keep.
    """
    names = {module: name for name, module in model.named_modules()}
    owners = {parameter: name for name, parameter in model.named_parameters()}
    attentions = {module: name for module, name in names.items() if is_attention(module)}
    readers = {module.get_submodule("qkv") for module in attentions}
    visited: set[Any] = set()
    for module, name in names.items():
        if module in attentions:
            yield from _heads(graph, model, module, name, names, owners)
        if not isinstance(module, _CONVOLUTION | nn.Linear) or module in visited or module not in graph.module2node:
            continue
        function = graph.get_pruner_of_module(module).prune_out_channels
        group = graph.get_pruning_group(module, function, list(range(module.weight.shape[_out_axis(module)])))
        reached = {(item.dep.target.module, _side(graph, item)) for item in group}
        visited |= {target for target, side in reached if side == "out"}
        targets = {target for target, _ in reached}
        into_attention = any((reader, "in") in reached for reader in readers)
        if any(isinstance(target, ops._OutputOp) or target is images for target in targets):
            continue
        if any((reader, "out") in reached for reader in readers) or (into_attention and not embedding):
            continue
        kind = "embedding" if into_attention else "hidden unit" if isinstance(module, nn.Linear) else "channel"
        cuts = _cuts(graph, model, group, names, owners)
        units = _units(model, cuts, len(group[0].idxs))
        if cuts and len(units) > 1:
            yield Part(name=name, kind=kind, units=units), cuts


def _heads(
    graph: tp.DependencyGraph,
    model: nn.Module,
    attention: nn.Module,
    name: str,
    names: dict[nn.Module, str],
    owners: dict[nn.Parameter, str],
) -> Iterator[tuple[Part, list[Cut]]]:
    heads, width = int(attention.num_heads), int(attention.head_dim)  # type: ignore[arg-type]
    # Rooted at the projection's input, where a head's features stand side by side; the graph maps them to the three
    # parts of the fused qkv layer.
    root = attention.get_submodule("proj")
    group = graph.get_pruning_group(root, tp.prune_linear_in_channels, list(range(heads * width)))
    cuts = _cuts(graph, model, group, names, owners)
    grid = torch.arange(heads * width).view(heads, width)
    if heads > 1:
        units = tuple(tuple(row) for row in grid.tolist())
        yield Part(name=f"{name}.proj", kind="head", units=units), cuts
    if width > 1 and not _head_norms(attention):
        units = tuple(tuple(row) for row in grid.T.tolist())
        yield Part(name=f"{name}.proj", kind="head dimension", units=units), cuts


def _head_norms(attention: nn.Module) -> list[nn.Module]:
    found = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return [module for module in found if isinstance(module, nn.Module) and not isinstance(module, nn.Identity)]


def _cuts(
    graph: tp.DependencyGraph,
    model: nn.Module,
    group: Any,
    names: dict[nn.Module, str],
    owners: dict[nn.Parameter, str],
) -> list[Cut]:
    """What a group reaches; nothing where a width would be lost that the artefact's file could not tell."""
    found = []
    for item in group:
        target, axis = item.dep.target.module, None
        if isinstance(target, nn.Parameter):
            path, _, name = owners[target].rpartition(".")
            axis = int(item.dep.target.pruning_dim)
            total = target.shape[axis]
        elif target not in names or (isinstance(target, nn.PReLU) and target.num_parameters == 1):
            continue
        elif isinstance(target, _NORMS) and not [*target.parameters(), *target.buffers()]:
            return []
        else:
            path, name = names[target], _side(graph, item)
            total = (graph.get_out_channels if name == "out" else graph.get_in_channels)(item.dep.target)
        if not set(item.idxs) <= set(range(total)):
            raise _missed(model, f"{path} ({name})", "channels beyond its width")
        roots = tuple(item.root_idxs)
        found.append(Cut(path=path, name=name, axis=axis, total=total, channels=tuple(item.idxs), roots=roots))
    return found


def _units(model: nn.Module, cuts: Sequence[Cut], count: int) -> tuple[tuple[int, ...], ...]:
    """Channels of the root that only go together: those at the same offset of any group of a convolution or norm."""
    parent = list(range(count))

    def find(channel: int) -> int:
        while parent[channel] != channel:
            channel = parent[channel]
        return channel

    for cut in cuts:
        layer = model.get_submodule(cut.path)
        groups = 1 if cut.axis is not None else _groups(layer)
        if groups == 1:
            continue
        if len(set(cut.channels)) != cut.total:
            raise ArtefactError(
                f"{type(model).__name__} cannot be pruned: only some channels of the {groups} groups of {cut.path} "
                f"hang together with {cuts[0].path}, so the groups would not stay equally wide; {_REMEDY}"
            )
        first: dict[int, int] = {}
        for channel, root in zip(cut.channels, cut.roots, strict=True):
            other = first.setdefault(channel % (cut.total // groups), root)
            one, two = sorted((find(root), find(other)))
            parent[two] = one
    units: dict[int, list[int]] = {}
    for channel in range(count):
        units.setdefault(find(channel), []).append(channel)
    return tuple(tuple(unit) for unit in units.values())


def _groups(layer: nn.Module) -> int:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups
    return layer.groups if isinstance(layer, _CONVOLUTION) and not is_depthwise(layer) else 1


def _side(graph: tp.DependencyGraph, item: Any) -> str:
    # A layer with one side has one function for both.
    return "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"


def _out_axis(layer: nn.Module) -> int:
    return int(isinstance(layer, nn.modules.conv._ConvTransposeNd))


def _missed(model: nn.Module, layer: str, what: str) -> ArtefactError:
    return ArtefactError(
        f"{type(model).__name__} cannot be pruned: the dependency graph missed a coupling at {layer} ({what}); "
        f"{_REMEDY}"
    )


def _refuse_unknown(model: nn.Module) -> None:
    known = [module for module in model.modules() if is_attention(module)]
    inside = {part for module in known for part in module.modules()}
    for name, module in model.named_modules():
        reason = None
        if isinstance(getattr(module, "num_heads", None), int) and module not in inside:
            # A block may keep the number beside the attention layer that it is for.
            reason = None if any(part in inside for part in module.modules()) else "its heads are not understood"
        elif isinstance(module, _UNKNOWN):
            reason = "how its channels hang together is not known"
        elif isinstance(module, nn.Conv1d) and module.in_channels == module.out_channels == 1:
            reason = "it slides over channels as if they were neighbours"
        elif isinstance(module, _CONVOLUTION) and module.groups > 1:
            if isinstance(module, nn.modules.conv._ConvTransposeNd):
                reason = "a transposed convolution in groups"
            elif module.groups == module.out_channels != module.in_channels:
                reason = f"{module.groups} groups that read several channels and make one"
        if reason:
            raise ArtefactError(
                f"{type(model).__name__} cannot be pruned because of {name} ({type(module).__name__}): {reason}; "
                f"{_REMEDY}"
            )


def _refuse_unreached(model: nn.Module, graph: tp.DependencyGraph) -> None:
    for name, module in model.named_modules():
        hooked = (
            isinstance(module, (_CONVOLUTION, nn.Linear, *_NORMS)) and module not in graph.IGNORED_LAYERS_IN_TRACING
        )
        if hooked and [*module.parameters()] and module not in graph.module2node:
            raise ArtefactError(
                f"{type(model).__name__} cannot be pruned: {name} has no part in what it answers in evaluation, so "
                f"what hangs together with it cannot be seen; {_REMEDY}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """torch-pruning traces autograd's graph, and warns and logs about parameters that it handles by convention."""
    logger = logging.getLogger("torch_pruning")
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", module="torch_pruning")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
