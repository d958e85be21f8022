"""Balance the weights' ranges across neighbouring layers of a float graph, without changing what it computes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto

from compress.quantization.qdq import Graph, attributes

__all__ = ["equalize"]

Floats = npt.NDArray[np.float32]

_HOMOGENEOUS = frozenset({"AveragePool", "Dropout", "GlobalAveragePool", "Identity", "LeakyRelu", "MaxPool", "Relu"})
"""f(s x) = s f(x), channel by channel, for s > 0. Clip is not: its upper bound would have to be scaled, too, and one
bound serves all channels."""

_LARGEST = 1e4
"""Channels are scaled by at most so much: dead ones would get any factor."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Link:
    """Two layers where all that the second one reads is what the first one writes."""

    first: NodeProto
    second: NodeProto


def equalize(parent: ModelProto, *, passes: int = 20) -> ModelProto:
    """Scale each channel between two layers so that its weights in both have the same range.

    Cross-layer equalization of Nagel et al. 2019 (arXiv 1906.04721, section 4.1, equation 11), between convolutions
    and Gemm with constant weights that are separated by nothing but functions with f(s x) = s f(x). Two layers are
    left alone if anything else reads what lies between them, or shares their weights.

    Args:
        parent: float graph; not changed.
        passes: over all pairs; each changes its neighbours' ranges.

    Returns:
        A graph that computes the same but for rounding; equal to `parent` where nothing can be balanced.
    """
    out = ModelProto()
    out.CopyFrom(parent)
    graph = Graph(out)
    links = _links(graph)
    for _ in range(passes if links else 0):
        if max(_balance(graph, link) for link in links) < 1.01:
            break
    return out


def _links(graph: Graph) -> list[_Link]:
    found = []
    for node in graph.model.graph.node:
        user = _reader(graph, node)
        while user is not None and user.op_type in _HOMOGENEOUS and len(user.output) == 1:
            user = _reader(graph, user)
        if user is not None and _scalable(graph, node) and _scalable(graph, user):
            found.append(_Link(first=node, second=user))
    return found


def _reader(graph: Graph, node: NodeProto) -> NodeProto | None:
    """The node that alone reads this one's output, as its first input."""
    users = graph.consumers(node.output[0]) if node.output[0] not in graph.outputs else []
    alone = len(users) == 1 and users[0].input[0] == node.output[0] and graph.uses[node.output[0]] == 1
    return users[0] if alone else None


def _scalable(graph: Graph, node: NodeProto) -> bool:
    if node.op_type not in ("Conv", "Gemm") or attributes(node).get("transA"):
        return False
    names = [name for name in node.input[1:] if name]
    if any(name not in graph.tensors or graph.uses[name] > 1 for name in names):
        return False
    width = len(_by_output(node, graph.array(node.input[1])))
    biases = [graph.array(name) for name in names[1:]]
    floats = all(graph.array(name).dtype == np.float32 for name in names)
    return floats and all(bias.shape == (width,) for bias in biases)


def _by_output(node: NodeProto, weight: Floats) -> Floats:
    """A view of the weights as [output channels, ...]."""
    return weight if node.op_type == "Conv" or attributes(node).get("transB") else weight.T


def _by_input(node: NodeProto, weight: Floats) -> Floats:
    """A view of the weights as [groups, input channels of a group, output channels of a group, ...]."""
    if node.op_type == "Gemm":
        return _by_output(node, weight).T[None]
    groups = attributes(node).get("group", 1)
    return weight.reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)


def _balance(graph: Graph, link: _Link) -> float:
    """Equalize one pair; the largest factor by which a channel was changed."""
    stored = [graph.array(node.input[1]).copy() for node in (link.first, link.second)]
    outputs, inputs = _by_output(link.first, stored[0]), _by_input(link.second, stored[1])
    first = np.abs(outputs).reshape(len(outputs), -1).max(axis=1)
    second = np.abs(inputs).reshape(*inputs.shape[:2], -1).max(axis=2).reshape(-1)
    alive = (first > 0) & (second > 0)
    factor = np.sqrt(np.divide(first, second, out=np.ones_like(first), where=alive)).clip(1 / _LARGEST, _LARGEST)
    outputs /= factor.reshape(-1, *[1] * (outputs.ndim - 1))
    inputs *= factor.reshape(*inputs.shape[:2], *[1] * (inputs.ndim - 2))
    for node, weight in zip((link.first, link.second), stored, strict=True):
        graph.store(node.input[1], weight)
    for name in link.first.input[2:]:
        graph.store(name, graph.array(name) / factor)
    return float(np.maximum(factor, 1 / factor).max(initial=1))
