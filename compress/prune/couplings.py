"""Which channels of a network hang together: from torch-pruning's dependency graph to parts that can be cut.

What goes together with a channel is decided here: the same offset in every group of a grouped convolution (the number
of groups stays, each gets narrower), whole heads of an attention layer, or the same dimension of each of its heads.
What reaches a layer that is not understood is kept as it is: of an attention layer whose heads are not timm's plain
ones, everything that it reads and puts out, so that of such a block the hidden units of its MLP are left to prune.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from timm.layers import Attention
from torch import nn
from torch_pruning import ops
from torch_pruning.dependency import graph as following

from zoo.base.errors import ArtefactError
from zoo.networks.heads import UnitLength
from zoo.networks.shrink import is_depthwise

__all__ = ["BLOCK", "REMEDY", "Cut", "Kept", "Part", "Traced", "is_attention", "parts_of", "traced"]

BLOCK = "block"
"""The kind of a part that is one whole residual block; see `depth`."""
REMEDY = "export the network unpruned (pocketzoo export)"
_CONVOLUTION = nn.modules.conv._ConvNd
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
"""torch-pruning follows every step of them, for ever where the steps are pixels."""
_UNKNOWN = (nn.Embedding, nn.EmbeddingBag, nn.Bilinear)
"""Layers whose channels are not cut, although torch-pruning has rules for some of them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One group of coupled channels that can be cut."""

    name: str
    """The layer it is named after."""
    kind: str
    """`channel`, `hidden unit`, `head`, `head dimension`, `embedding` or `block`."""
    units: tuple[tuple[int, ...], ...]
    """Unit -> the root's channels that go together."""
    multiple: int = 1
    """The number of units left must be a multiple of this."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A layer whose channels stay, although the network's outputs do not need them all."""

    layer: str
    """Its name, and its type where that tells why."""
    reason: str


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


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A copy of a network with its dependency graph."""

    model: nn.Module
    graph: tp.DependencyGraph
    images: nn.Parameter
    """What it was run on."""
    strange: Mapping[nn.Module | nn.Parameter, Kept]
    """The layers that no cut may reach, with their parameters."""


def traced(model: nn.Module, shape: Sequence[int]) -> Traced:
    """Follow a network from two inputs of `shape` (without the batch) to its outputs; it stays as it is.

    Raises:
        ArtefactError: layers that a forward pass does not reach, or a network that cannot be run or followed.
    """
    for name, module in model.named_modules():
        if isinstance(module, _RECURRENT):
            raise ArtefactError(
                f"{type(model).__name__} cannot be pruned because of {name} ({type(module).__name__}): how the "
                f"channels of recurrent layers hang together is not known; {REMEDY}"
            )
    # Networks keep what they computed in evaluation, here with gradients, in places of their own.
    model = copy.deepcopy(model).eval().requires_grad_(True)
    like = next(model.parameters())
    # As a parameter, so that a channel that reaches the input shows in its group.
    images = nn.Parameter(torch.zeros(2, *shape, dtype=like.dtype, device=like.device))
    try:
        with _quiet():
            graph = tp.DependencyGraph().build_dependency(
                model,
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
            f"{tuple(shape)} ({_first_line(error)}); {REMEDY}"
        ) from error
    strange = _not_understood(model)
    _refuse_unreached(model, graph, strange)
    return Traced(model=model, graph=graph, images=images, strange=strange)


def parts_of(found: Traced, embedding: bool) -> Iterator[tuple[Part, list[Cut]] | Kept]:
    """Every part of a network with what it cuts, and what cannot be one, in the order of the network's layers.

    Args:
        found: the network.
        embedding: whether the width of a transformer's embedding is one.
    """
    with _quiet(), _bounded(found):
        yield from _parts_of(found.model, found.graph, found.images, found.strange, embedding)


def _parts_of(
    model: nn.Module,
    graph: tp.DependencyGraph,
    images: nn.Parameter,
    strange: Mapping[nn.Module | nn.Parameter, Kept],
    embedding: bool,
) -> Iterator[tuple[Part, list[Cut]] | Kept]:
    names = {module: name for name, module in model.named_modules()}
    owners = {parameter: name for name, parameter in model.named_parameters()}
    attentions = [module for module in names if is_attention(module)]
    readers = {module.get_submodule("qkv") for module in attentions}
    visited: set[Any] = set()
    yield from dict.fromkeys(strange.values())
    for module, name in names.items():
        if module in attentions:
            try:
                yield from _heads(graph, model, module, name, names, owners)
            except _UnclearError as error:
                yield Kept(layer=f"{name}.proj", reason=str(error))
        if not isinstance(module, _CONVOLUTION | nn.Linear) or module in visited or module not in graph.module2node:
            continue
        if module in strange:
            continue
        try:
            group = _group(graph, module)
            reached = {(item.dep.target.module, _side(graph, item)) for item in group}
            visited |= {target for target, side in reached if side == "out"}
            targets = {target for target, _ in reached}
            into_attention = any((reader, "in") in reached for reader in readers)
            if any(isinstance(target, ops._OutputOp) or target is images for target in targets):
                continue
            if any((reader, "out") in reached for reader in readers) or (into_attention and not embedding):
                continue
            if any(target in strange for target in targets):
                continue
            try:
                cuts = _cuts(graph, group, names, owners)
            except _GatedError as error:
                group = graph.get_pruning_group(error.reader, tp.prune_linear_in_channels, list(range(error.width)))
                cuts = _cuts(graph, group, names, owners)
            units = _units(model, cuts, len(group[0].idxs))
        except _UnclearError as error:
            yield Kept(layer=name, reason=str(error))
            continue
        kind = "embedding" if into_attention else "hidden unit" if isinstance(module, nn.Linear) else "channel"
        if cuts and len(units) > 1:
            yield Part(name=name, kind=kind, units=units), cuts


class _UnclearError(Exception):
    """Why a group of layers cannot be followed."""


class _GatedError(_UnclearError):
    """Features are split, as in a gated MLP, and torch-pruning 1.6.1 follows that along the second axis only.

    From the layer that reads the product of the parts, back to the one that made them, it is followed.
    """

    def __init__(self, reason: str, reader: nn.Linear) -> None:
        super().__init__(reason)
        self.reader, self.width = reader, reader.in_features


def _group(graph: tp.DependencyGraph, module: nn.Linear | nn.modules.conv._ConvNd) -> Any:
    function = graph.get_pruner_of_module(module).prune_out_channels
    try:
        return graph.get_pruning_group(module, function, list(range(module.weight.shape[_out_axis(module)])))
    except _UnclearError:
        raise
    except Exception as error:  # what torch-pruning's rules do with operations they were not made for is open
        raise _UnclearError(f"what its channels go together with cannot be followed ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


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
    cuts = _cuts(graph, group, names, owners)
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
    group: Any,
    names: dict[nn.Module, str],
    owners: dict[nn.Parameter, str],
) -> list[Cut]:
    """What a group reaches; nothing where a width would be lost that the artefact's file could not tell."""
    found: list[Cut] = []
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
        if max(item.idxs, default=0) >= total:
            reason = f"the dependency graph missed a coupling at {path} ({name}: channels beyond its width)"
            gated = isinstance(target, nn.Linear) and name == "in" and len(item.idxs) % total == 0
            raise _GatedError(reason, target) if gated else _UnclearError(reason)
        channels, roots = tuple(item.idxs), tuple(item.root_idxs)
        if found and (found[0].name, name) == ("in", "out") and len(channels) == found[0].total < total:
            # Each part of a split has all of the reader's channels.
            channels = tuple(start + channel for start in range(0, total, found[0].total) for channel in item.idxs)
            roots *= total // found[0].total
        found.append(Cut(path=path, name=name, axis=axis, total=total, channels=channels, roots=roots))
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
            raise _UnclearError(
                f"only some channels of the {groups} groups of {cut.path} hang together with it, so that the groups "
                "would not stay equally wide"
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


def _not_understood(model: nn.Module) -> dict[nn.Module | nn.Parameter, Kept]:
    """Layers, and the parameters of attention layers, that no cut may reach, and why."""
    known = {part for module in model.modules() if is_attention(module) for part in module.modules()}
    found: dict[nn.Module | nn.Parameter, Kept] = {}
    for name, module in model.named_modules():
        reason, inside = None, [module]
        if _has_heads(module) and module not in known and not any(map(_has_heads, list(module.modules())[1:])):
            reason, inside = "its heads are not understood", list(module.modules())
        elif isinstance(module, nn.Sequential) and any(isinstance(part, UnitLength) for part in module):
            reason, inside = "its features are those that images share with texts", [module[-1]]
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
            kept = Kept(layer=f"{name} ({type(module).__name__})", reason=reason)
            found.update(
                dict.fromkeys([*inside, *(p for part in inside for p in part.parameters(recurse=False))], kept)
            )
    return found


def _has_heads(module: nn.Module) -> bool:
    return isinstance(getattr(module, "num_heads", None), int)


def _refuse_unreached(
    model: nn.Module, graph: tp.DependencyGraph, strange: Mapping[nn.Module | nn.Parameter, Kept]
) -> None:
    for name, module in model.named_modules():
        hooked = (
            isinstance(module, (_CONVOLUTION, nn.Linear, *_NORMS)) and module not in graph.IGNORED_LAYERS_IN_TRACING
        )
        # A layer whose attention is kept whole may be called by its weights.
        if hooked and [*module.parameters()] and module not in graph.module2node and module not in strange:
            raise ArtefactError(
                f"{type(model).__name__} cannot be pruned: {name} has no part in what it answers in evaluation, so "
                f"what hangs together with it cannot be seen; {REMEDY}"
            )


@contextmanager
def _bounded(found: Traced) -> Iterator[None]:
    """Let the search for a group fail that would not end.

    Where torch-pruning 1.6.1 takes pixels for channels (EfficientViM), its lists of channels grow with every turn. Of
    nine families from ViT to DenseNet no group took more than 1.4 steps per node of the graph.
    """
    widest = 2 * max(max(parameter.shape, default=1) for parameter in found.model.parameters())
    most = 100 + 4 * len(found.graph.module2node)

    class Bounded(following.Group):  # type: ignore[misc]
        def add_dep(self, dep: Any, idxs: list[Any]) -> None:
            if len(idxs) > widest or len(self) > most:
                raise _UnclearError("no end of what its channels go together with was found")
            super().add_dep(dep, idxs)

    whole, following.Group = following.Group, Bounded
    try:
        yield
    finally:
        following.Group = whole


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
