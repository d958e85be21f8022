"""A network as a graph: which layer feeds which, as deep as a cut between frozen and trained parts needs to know.

torch.fx runs the network's own code on stand-ins for tensors and notes what it does. A module that training does not
change, and one that comes after the first change, are noted as one step: they keep their own behaviour in training
and evaluation, and whatever torch.fx could not follow within them does not matter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from torch import fx, nn
from torch.utils import _pytree as pytree

from zoo.base.errors import UsageError, unknown_name

__all__ = [
    "ROOT",
    "Moving",
    "Shape",
    "TooDeepError",
    "Traced",
    "has_tensors",
    "moving",
    "restored",
    "trace",
    "without_gradients_of_weights",
]

ROOT = "model"
"""First part of every name in a graph."""


@dataclass(frozen=True)
class Moving:
    """What training changes."""

    modules: frozenset[int]
    """`id` of every module that contains some of it."""
    direct: frozenset[int]
    """`id` of every module that holds some of it itself, not in a child."""
    tensors: frozenset[int]
    """`id` of parameters and running statistics."""


@dataclass(frozen=True)
class Shape:
    """Stands for a tensor among the values seen at a node."""

    sizes: tuple[int, ...]


class TooDeepError(Exception):
    """A module has to stay whole."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path = path


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A network in evaluation mode as a graph, with all that a cut needs to know about its nodes."""

    graph: fx.Graph
    moving: set[fx.Node]
    """The nodes that training changes."""
    owners: dict[fx.Node, str]
    """Path of the module in whose `forward` the node arose."""
    targets: dict[str, Any]
    """The modules and tensors that the graph names."""
    alternatives: dict[fx.Node, fx.Node]
    """The nodes whose constants differ in training, like dropout written as a function, with the ones of then."""
    seen: dict[fx.Node, tuple[Any, Any]]
    """The value of every node for `count` images and for one less; in place of a tensor its :class:`Shape`."""
    count: int

    @functools.cached_property
    def data(self) -> set[fx.Node]:
        """The nodes that depend on what is in the images, not on their number and size alone."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            fed = node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes)
            if fed and has_tensors(self.seen[node][0]):
                found.add(node)
        return found


def moving(model: nn.Module, trainable: Collection[str], live: Collection[str]) -> Moving:
    """What training changes, by the names of parameters and of layers that update their running statistics.

    Raises:
        UsageError: nothing is trainable, or a name that the network does not have.
    """
    if not trainable:
        raise UsageError("nothing is trainable: expected the name of at least one parameter")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    for kind, names, known in (("parameter", trainable, parameters), ("layer", live, modules)):
        for name in names:
            if name not in known:
                raise unknown_name(kind, name, known)
    updating = {id(modules[name]) for name in live}
    tensors = {id(parameters[name]) for name in trainable}
    tensors |= {id(buffer) for name in live for buffer in modules[name].buffers(recurse=False)}
    direct = {
        id(module)
        for module in modules.values()
        if id(module) in updating or any(id(p) in tensors for p in module.parameters(recurse=False))
    }
    above = {id(module) for module in modules.values() if any(id(child) in direct for child in module.modules())}
    return Moving(frozenset(above), frozenset(direct), frozenset(tensors))


@contextmanager
def without_gradients_of_weights(model: nn.Module) -> Iterator[None]:
    """Let no parameter want gradients meanwhile, so that none are computed that nobody asked for."""
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give every module the attributes back that it had, its mode among them: tracing runs `forward` on stand-ins.

    Meanwhile no parameter wants gradients: FlopCounterMode fails on a view of one that does (torch 2.15, without
    gradients; CaiT's class token is such a view).
    """
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        with without_gradients_of_weights(model):
            yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def trace(model: nn.Module, changing: Moving, whole: Collection[str], images: torch.Tensor) -> Traced:
    """Follow a network in training and in evaluation.

    Args:
        model: maps images to logits; ends in evaluation mode.
        changing: what training changes of it.
        whole: paths of modules that are not to be entered.
        images: at least two, float32 [B, C, H, W].

    Raises:
        TooDeepError: a module that could not be followed; to be kept whole.
    """
    training = _record(model.train(), changing, whole)
    recorded = _record(model.eval(), changing, whole)
    graph, targets = recorded.graph, _targets(recorded)
    module = fx.GraphModule(targets, graph)
    runs = []
    for batch in (images, images[:-1]):
        look = _Look(module)
        look.run(batch)
        runs.append(look.seen)
    return Traced(
        graph=graph,
        moving=recorded.moving,
        owners=recorded.owners,
        targets=targets,
        alternatives=_alternatives(recorded, training),
        seen={node: (runs[0][node.name], runs[1][node.name]) for node in graph.nodes},
        count=len(images),
    )


def _record(model: nn.Module, changing: Moving, whole: Collection[str]) -> _Tracer:
    wrapper = _Wrapper(model)
    wrapper.training = model.training
    named = [*wrapper.named_parameters(), *wrapper.named_buffers()]
    tracer = _Tracer(changing, whole, {name for name, tensor in named if id(tensor) in changing.tensors})
    tracer.trace(wrapper)
    return tracer


def _targets(tracer: _Tracer) -> dict[str, Any]:
    names = {cast(str, node.target) for node in tracer.graph.nodes if node.op in ("call_module", "get_attr")}
    return {name: functools.reduce(getattr, name.split("."), cast(Any, tracer.root)) for name in names}


def _alternatives(evaluation: _Tracer, training: _Tracer) -> dict[fx.Node, fx.Node]:
    found = {}
    # Both end with an output, so that graphs of different lengths differ at one of these pairs.
    for one, other in zip(evaluation.graph.nodes, training.graph.nodes, strict=False):
        if _outline(one) != _outline(other):
            # The longer of the two ways goes on inside the module that the shorter one has left.
            raise TooDeepError(
                max(evaluation.owners[one], training.owners[other], key=len), "it works another way in training"
            )
        if (one.args, one.kwargs) != _translated(other, one):
            found[one] = other
    return found


def _outline(node: fx.Node) -> tuple[Any, ...]:
    """What a node does, but for its constants."""
    names = fx.node.map_aggregate(
        cast(Any, (node.args, node.kwargs)), lambda leaf: leaf.name if isinstance(leaf, fx.Node) else None
    )
    return node.op, node.target, node.name, repr(names)


def _translated(node: fx.Node, into: fx.Node) -> tuple[Any, Any]:
    """The arguments of a node of one graph, in terms of the nodes that have the same names in another."""
    known = {other.name: other for other in into.all_input_nodes}
    return fx.node.map_arg(node.args, lambda n: known[n.name]), fx.node.map_arg(node.kwargs, lambda n: known[n.name])


def has_tensors(seen: Any) -> bool:
    """Whether a value seen at a node is or contains a tensor."""
    return any(isinstance(leaf, Shape) for leaf in pytree.tree_leaves(seen))


class _Wrapper(nn.Module):
    """Calls the network with images only, so that other arguments of its `forward` keep their defaults."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.model(images))


class _Tracer(fx.Tracer):
    """Enters a module only if it is partly frozen and everything that goes into it is."""

    proxy_buffer_attributes = True

    def __init__(self, moving: Moving, whole: Collection[str], attributes: Collection[str]) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.changing = moving
        self.whole = whole
        self.attributes = attributes
        self.moving: set[fx.Node] = set()
        self.owners: dict[fx.Node, str] = {}
        self.entered = [""]

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        path = self.path_of_module(m)
        if path != ROOT and self._stays_whole(m, path, (args, kwargs)):
            proxy = self.create_proxy("call_module", path, args, kwargs)
            if id(m) in self.changing.modules:
                self.moving.add(proxy.node)
            return proxy
        self.entered.append(path)
        try:
            return forward(*args, **kwargs)
        except TooDeepError:
            raise
        except Exception as error:
            raise TooDeepError(path, f"{type(error).__name__}: {error}") from error
        finally:
            self.entered.pop()

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        self.owners[node] = self.entered[-1]
        if not self.moving.isdisjoint(node.all_input_nodes) or (kind == "get_attr" and node.target in self.attributes):
            self.moving.add(node)
        return node

    def _stays_whole(self, module: nn.Module, path: str, inputs: object) -> bool:
        return (
            id(module) not in self.changing.modules
            or id(module) in self.changing.direct
            or path in self.whole
            or not any(module.children())
            or self.is_leaf_module(module, path)
            or isinstance(module, tuple(get_notrace_modules()))
            or any(isinstance(leaf, fx.Proxy) and leaf.node in self.moving for leaf in pytree.tree_leaves(inputs))
        )


class _Look(fx.Interpreter):
    """Notes the value at every node, of tensors the shape."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.seen[n.name] = pytree.tree_map(
            lambda leaf: Shape(tuple(leaf.shape)) if isinstance(leaf, torch.Tensor) else leaf, value
        )
        return value
