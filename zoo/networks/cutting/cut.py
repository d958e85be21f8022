"""Compute frozen parts once: cut a network into the part that training leaves as it is and the rest.

What training does not change can be computed once per image instead of once per image and epoch.

`B` is the batch size, `C` the channels, `H`, `W` the size of the images, `K` the number of labels.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from timm.layers import DropBlock2d, DropPath
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth

from zoo.base.errors import PocketzooError
from zoo.networks.cutting.tracing import ROOT, Moving, Shape, TooDeepError, Traced, has_tensors, moving, restored, trace

__all__ = ["Cut", "CutError", "cut_bytes", "cut_network"]

WORTHWHILE = 0.1
"""A cut that saves a smaller share of an epoch's arithmetic is not worth the memory."""

_DROPOUTS = (nn.modules.dropout._DropoutNd, DropBlock2d, DropPath, StochasticDepth)
_HEAVY = frozenset({"baddbmm", "bmm", "einsum", "linear", "matmul", "mm", "scaled_dot_product_attention"})


class CutError(PocketzooError):
    """A network that cannot be cut; it can still be trained whole."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A network in two parts that share its own modules and parameters; it is not copied and not changed."""

    frozen: nn.Module
    """Images float32 [B, C, H, W] to a tuple of tensors [B, ...], always in evaluation mode and without gradients."""
    rest: nn.Module
    """That tuple to logits [B, K]. It is in training or evaluation mode as the network itself is."""
    cut: tuple[str, ...]
    """Names of the values at the cut."""
    saved: float
    """Share of the arithmetic of an epoch of training that the frozen part is. The backward pass through the rest
    counts twice its forward pass; the frozen part has none."""

    @property
    def worthwhile(self) -> bool:
        """Whether the frozen part is worth keeping in memory: False where the cut is the images themselves."""
        return self.saved >= WORTHWHILE


def cut_network(
    model: nn.Module, trainable: Collection[str], example: torch.Tensor, *, live: Collection[str] = ()
) -> Cut:
    """Cut a network before everything that training changes.

    Dropout within the frozen part is off. Dropout between the frozen part and the rest, as before most classifiers,
    belongs to the rest.

    Args:
        model: maps images to logits. Its modes, hooks and attributes stay as they are.
        trainable: names of the parameters that will be trained.
        example: of the shape, device and type that both parts will get: float32 [B, C, H, W]; its values do not matter.
        live: names of the normalisation layers that will update their running statistics.

    Raises:
        UsageError: nothing is trainable, or a name that the network does not have.
        SplitError: torch.fx cannot follow the network, or the parts do not compute what the whole does.
    """
    changing = moving(model, trainable, live)
    with restored(model), torch.no_grad():
        try:
            images = _noise(example)
            return _verified(model, _cut_until_clean(model, changing, images), images)
        except CutError:
            raise
        except Exception as error:  # what another's network does with stand-ins for tensors is open
            raise CutError(_refusal(model, f"{type(error).__name__}: {error}")) from error


def cut_bytes(found: Cut, example: torch.Tensor) -> int:
    """Bytes per image at the cut.

    Args:
        found: what :func:`split` made.
        example: images float32 [B, C, H, W], on the model's device.
    """
    values = found.frozen(example)
    return int(sum(value.numel() * value.element_size() for value in values)) // len(example)


class _Frozen(nn.Module):
    """Runs the frozen graph in evaluation mode, whatever mode its modules are in."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        modes = [(module, module.training) for module in self.graph.modules()]
        try:
            for module, _ in modes:
                module.training = False
            with torch.no_grad():
                return cast(tuple[torch.Tensor, ...], self.graph(images))
        finally:
            for module, training in modes:
                module.training = training


class _Rest(nn.Module):
    """Runs the remaining graph; it has no mode of its own but the network's."""

    def __init__(self, graph: fx.GraphModule, model: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        # In a tuple: as a submodule, the frozen parameters would count as this part's.
        self._model = (model,)
        self.overwritten: frozenset[int] = frozenset()

    def train(self, mode: bool = True) -> _Rest:
        self.training = mode
        self._model[0].train(mode)
        return self

    def forward(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        # Layers that work in place must not overwrite a cache.
        own = [value.clone() if index in self.overwritten else value for index, value in enumerate(values)]
        return cast(torch.Tensor, self.graph(self._model[0].training, *own))


def _refusal(model: nn.Module, reason: str) -> str:
    # torch.fx appends the graph to its messages.
    return f"{type(model).__name__} cannot be cut: {reason.strip().splitlines()[0]}"


def _noise(example: torch.Tensor) -> torch.Tensor:
    """Three different images like the example, which may be blank: of blank ones, wrong parts could give right sums."""
    noise = torch.randn(3, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    return noise.to(example)


def _cut_until_clean(model: nn.Module, changing: Moving, images: torch.Tensor) -> Cut:
    """Cut; where the inside of a module resists, keep that module whole and start over."""
    whole: set[str] = set()
    while True:
        try:
            with restored(model):
                return _cut(model, changing, whole, images)
        except TooDeepError as error:
            if error.path in ("", ROOT) or error.path in whole:
                raise CutError(_refusal(model, str(error))) from error
            whole.add(error.path)


def _cut(model: nn.Module, changing: Moving, whole: Collection[str], images: torch.Tensor) -> Cut:
    traced = trace(model, changing, whole, images)
    if next(iter(reversed(traced.graph.nodes))) not in traced.moving:
        raise CutError(f"what is trained does not change what {type(model).__name__} answers")
    rest = _rest_of(traced)
    cut = _values(traced, rest)
    for node in cut:
        _check_batch(traced, node)
    frozen = _Frozen(_frozen_graph(traced, cut))
    remaining = _Rest(_rest_graph(traced, rest, cut), model)
    return Cut(frozen=frozen, rest=remaining, cut=tuple(node.name for node in cut), saved=0.0)


def _rest_of(traced: Traced) -> set[fx.Node]:
    """The nodes to compute in every step: what training changes, dropout just before it, and what spares memory."""
    rest = traced.moving & _needed(traced, [node for node in traced.graph.nodes if node.op == "output"])
    for node in reversed(traced.graph.nodes):
        users = [user in rest for user in node.users]
        # A tuple is no value at a cut: its parts are.
        several = any(users) and not isinstance(traced.seen[node][0], Shape)
        if node in traced.data and users and (several or (all(users) and _random(traced, node))):
            rest.add(node)
    while spare := [node for node in _values(traced, rest) if _spares(traced, node, rest)]:
        rest.add(spare[-1])
    return rest


def _random(traced: Traced, node: fx.Node) -> bool:
    """Whether a node is dropout, as a function or as a layer."""
    if node in traced.alternatives or node.op != "call_module":
        return node in traced.alternatives
    module: nn.Module = traced.targets[cast(str, node.target)]
    if any(True for _ in module.parameters()):
        return False
    parts = [part for part in module.modules() if isinstance(part, _DROPOUTS)]
    return any((getattr(part, "p", 0.0) or getattr(part, "drop_prob", 0.0)) > 0 for part in parts)


def _needed(traced: Traced, results: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that some results are computed from, with themselves."""
    needed = set(results)
    for node in reversed(traced.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return needed


def _values(traced: Traced, rest: Collection[fx.Node]) -> list[fx.Node]:
    """The frozen values that the rest starts from."""
    used = {source for node in rest for source in node.all_input_nodes if source not in rest and source in traced.data}
    return [node for node in traced.graph.nodes if node in used]


def _spares(traced: Traced, node: fx.Node, rest: Collection[fx.Node]) -> bool:
    """Whether a value at the cut is quickly computed from others that are there anyway."""
    sources = [source for source in node.all_input_nodes if source in traced.data]
    values = set(_values(traced, rest))
    if not sources or not values.issuperset(sources):
        return False
    if node.op == "call_module":
        module = traced.targets[cast(str, node.target)]
        return all(parameter.ndim < 2 for parameter in module.parameters())
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return not (name in _HEAVY or name.startswith("conv"))


def _check_batch(traced: Traced, node: fx.Node) -> None:
    more, fewer = traced.seen[node]
    if more.sizes[:1] != (traced.count,) or fewer.sizes != (traced.count - 1, *more.sizes[1:]):
        raise TooDeepError(
            traced.owners[node],
            f"{node.name} has the shape {more.sizes} for {traced.count} images: not a part for each",
        )


def _frozen_graph(traced: Traced, cut: Sequence[fx.Node]) -> fx.GraphModule:
    needed = _needed(traced, cut)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        # The placeholder stays, used or not: the caller passes images.
        if node in needed or node.op == "placeholder":
            copies[node] = graph.node_copy(node, lambda source: copies[source])
    graph.output(tuple(copies[node] for node in cut))
    return _module(traced, graph)


def _rest_graph(traced: Traced, rest: Collection[fx.Node], cut: Sequence[fx.Node]) -> fx.GraphModule:
    builder = _RestBuilder(traced, cut)
    for node in traced.graph.nodes:
        if node in rest:
            builder.add(node)
    return _module(traced, builder.graph)


class _RestBuilder:
    """Copies nodes into a graph that starts from the values at the cut and a flag for training."""

    def __init__(self, traced: Traced, cut: Sequence[fx.Node]) -> None:
        self.traced = traced
        self.graph = fx.Graph()
        self.training = self.graph.placeholder("training")
        self.copies: dict[fx.Node, Any] = {node: self.graph.placeholder(f"cut_{node.name}") for node in cut}
        first = self.copies[cut[0]]
        self.batch = self.graph.call_method("size", (first, 0))
        self.device = self.graph.call_function(getattr, (first, "device"))

    def add(self, node: fx.Node) -> None:
        other = self.traced.alternatives.get(node)
        if other is None:
            self.copies[node] = self.graph.node_copy(node, self._bring)
            return
        args = tuple(self._pick(one, trained) for one, trained in zip(node.args, other.args, strict=True))
        kwargs = {key: self._pick(one, other.kwargs[key]) for key, one in node.kwargs.items()}
        self.copies[node] = self.graph.create_node(node.op, node.target, args, kwargs)

    def _bring(self, node: fx.Node) -> Any:
        """A node's copy, or what takes its place."""
        if node not in self.copies:
            more, fewer = self.traced.seen[node]
            whole = has_tensors(more)
            self.copies[node] = self.graph.node_copy(node, self._bring) if whole else self._number(node, more, fewer)
        return self.copies[node]

    def _number(self, node: fx.Node, more: Any, fewer: Any) -> Any:
        """A value that depends on the images' number and size only, computed from what the rest gets."""
        if isinstance(more, tuple | list):
            parts = [self._number(node, one, other) for one, other in zip(more, fewer, strict=True)]
            return parts if isinstance(more, list) else tuple(parts)
        if isinstance(more, torch.device):
            return self.device
        if more == fewer:
            return more
        count = self.traced.count
        factor = more // count if isinstance(more, int) else 0
        if (factor * count, factor * (count - 1)) != (more, fewer):
            raise TooDeepError(
                self.traced.owners[node], f"{node.name} is {more} for {count} images, {fewer} for {count - 1}"
            )
        return self.graph.call_function(operator.mul, (self.batch, factor))

    def _pick(self, evaluation: Any, trained: Any) -> Any:
        """An argument that depends on the mode."""
        if isinstance(evaluation, fx.Node):
            return self._bring(evaluation)
        if isinstance(evaluation, dict):
            return {key: self._pick(value, trained[key]) for key, value in evaluation.items()}
        if isinstance(evaluation, tuple | list):
            return type(evaluation)(self._pick(one, other) for one, other in zip(evaluation, trained, strict=True))
        if evaluation == trained:
            return evaluation
        return self.graph.call_function(_choose, (self.training, trained, evaluation))


def _choose(training: bool, trained: Any, evaluation: Any) -> Any:
    return trained if training else evaluation


def _module(traced: Traced, graph: fx.Graph) -> fx.GraphModule:
    """A graph with the modules it names, under the names that they have in the network."""
    targets = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            name = cast(str, node.target)
            node.target = name.removeprefix(f"{ROOT}.")
            targets[node.target] = traced.targets[name]
    graph.lint()
    return fx.GraphModule(targets, graph)


def _verified(model: nn.Module, found: Cut, images: torch.Tensor) -> Cut:
    """The split with its share of the arithmetic, once its parts were seen to compute what the network does."""
    model.eval()
    expected = model(images)
    with FlopCounterMode(display=False) as first:
        values = found.frozen(images)
    own = [value.clone() for value in values]
    versions = [value._version for value in own]
    with FlopCounterMode(display=False) as second:
        logits = found.rest(own)
    if not _close(logits, expected, 1e-4):
        worst = (logits - expected).abs().max().item()
        raise CutError(_refusal(model, f"its parts differ from the whole by up to {worst:.2g}"))
    for alone, value in zip(found.frozen(images[:1]), values, strict=True):
        # Kernels differ between batch sizes, and NVIDIA's round to 10 bits (TF32).
        if not _close(alone, value[:1], 1e-2):
            raise CutError(_refusal(model, "what it makes of an image depends on the others"))
    rest = cast(_Rest, found.rest)
    rest.overwritten = frozenset(
        index for index, (value, version) in enumerate(zip(own, versions, strict=True)) if value._version != version
    )
    frozen, remaining = first.get_total_flops(), second.get_total_flops()
    return dataclasses.replace(found, saved=frozen / max(1, frozen + 3 * remaining))


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    """Equal but for rounding, relative to the largest value."""
    scale = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=tolerance * scale)
