"""Subtract from the biases of a QDQ graph what quantization adds on average."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto

from compress.quantize.observe import observe, session
from compress.quantize.qdq_layers import Graph, Layer, layers
from zoo.artefact.preprocess import at_once

__all__ = ["correct"]

Floats = npt.NDArray[np.float32]
State = dict[str, npt.NDArray[Any]]

_IMAGES = (16, 64)
"""Of large images at least, of others at most: more change nothing (measured), and the activations of all of them are
kept between layers."""


def correct(quantized: ModelProto, parent: ModelProto, feeds: Sequence[Mapping[str, Floats]]) -> ModelProto:
    """Shift each bias so that the layer's outputs have the float graph's mean, channel by channel.

    Bias correction of Nagel et al. 2019 (arXiv 1906.04721, section 4.2), on calibration images as in its appendix D:
    layer after layer, each with those before it corrected. It deviates in that each shift is shrunk by its own
    uncertainty, taken from how it varies between images, so that few images do no harm.

    Args:
        quantized: QDQ graph; not changed. Layers without a bias stay as they are.
        parent: the float graph it was made from.
        feeds: inputs of both graphs, a batch each, images first; no more are read than the first 64 images or so,
            and fewer where these are larger than 224 x 224 pixels.

    Returns:
        The corrected graph.
    """
    out = ModelProto()
    out.CopyFrom(quantized)
    graph = Graph(out)
    found = [layer for layer in layers(graph, Graph(parent)) if layer.bias is not None]
    used = list(_first(feeds))
    if not found or not used:
        return out
    wanted: list[list[Floats]] = [[] for _ in found]
    for answers in observe(parent, [layer.output for layer in found], used, exact=True):
        for means, layer in zip(wanted, found, strict=True):
            means.append(_means(answers[layer.output], layer))
    states: list[State] = [dict(feed) for feed in used]
    nodes, start = _constants_late(graph), 0
    for layer, targets in zip(found, wanted, strict=True):
        name = layer.node.output[0]
        start = _advance(graph, nodes, start, name, states)
        shift = _shrunk(np.concatenate(targets) - np.concatenate([_means(state[name], layer) for state in states]))
        _store(graph, layer, shift)
        if len(layer.node.input) > 2:
            shaped = shift.reshape(-1, *[1] * (states[0][name].ndim - 2)) if layer.node.op_type == "Conv" else shift
            for state in states:
                state[name] = state[name] + shaped
    return out


def _first(feeds: Sequence[Mapping[str, Floats]]) -> Iterator[Mapping[str, Floats]]:
    least, most = _IMAGES
    seen = 0
    for feed in feeds:
        yield feed
        shape = next(iter(feed.values())).shape
        seen += shape[0]
        if seen >= max(least, at_once(shape[2:], most=most)):
            return


def _constants_late(graph: Graph) -> list[NodeProto]:
    """The nodes in their order, but each that reads only constants right before the first that reads it.

    The weights of all layers, dequantized at the start, would be kept for every batch.
    """
    found: list[NodeProto] = []
    waiting: dict[str, NodeProto] = {}

    def place(node: NodeProto) -> None:
        for name in node.input:
            if (constant := waiting.get(name)) is not None:
                for output in constant.output:
                    del waiting[output]
                place(constant)
        found.append(node)

    for node in graph.model.graph.node:
        if all(name in graph.tensors or name in waiting for name in node.input if name):
            waiting.update(dict.fromkeys(node.output, node))
        else:
            place(node)
    return found


def _advance(graph: Graph, nodes: list[NodeProto], start: int, name: str, states: list[State]) -> int:
    """Run the nodes from `start` to the one that makes `name`, on every batch.

    Args:
        graph: the whole graph.
        nodes: all of them, in an order of execution.
        start: index of the first node.
        name: an output of the last.
        states: tensors by name, per batch; gets those that later nodes read, and loses those that none does.

    Returns:
        The index of the next node.
    """
    stop = next(index for index in range(start, len(nodes)) if name in nodes[index].output) + 1
    made = {output for node in nodes[start:stop] for output in node.output}
    read = {entry for node in nodes[start:stop] for entry in node.input}
    needed = {entry for node in nodes[stop:] for entry in node.input} | {name}
    inputs, outputs = sorted(read & set(states[0])), sorted(made & needed)
    part = _part(graph, nodes[start:stop], {entry: states[0][entry] for entry in inputs}, outputs)
    running = session(part, exact=True)
    for state in states:
        answers = running.run(outputs, {entry: state[entry] for entry in inputs})
        state.update(zip(outputs, answers, strict=True))
        for entry in set(state) - needed:
            del state[entry]
    return stop


def _part(graph: Graph, nodes: list[NodeProto], inputs: State, outputs: list[str]) -> ModelProto:
    types = {name: onnx.helper.np_dtype_to_tensor_dtype(values.dtype) for name, values in inputs.items()}
    names = sorted({name for node in nodes for name in node.input if name in graph.tensors})
    part = onnx.helper.make_graph(
        nodes,
        "part",
        [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [graph.tensors[name] for name in names],
    )
    opsets, version = graph.model.opset_import, graph.model.ir_version
    return onnx.helper.make_model(part, opset_imports=opsets, ir_version=version)


def _means(values: npt.NDArray[Any], layer: Layer) -> Floats:
    """The mean of every channel in every image: [images, channels]."""
    last = np.moveaxis(values, 1 if layer.node.op_type == "Conv" else -1, -1)
    return np.asarray(last.reshape(len(values), -1, last.shape[-1]).mean(axis=1), np.float32)


def _shrunk(differences: Floats) -> Floats:
    """The mean over images, as far as it stands out of its standard error (the positive-part James-Stein estimator)."""
    mean = differences.mean(axis=0)
    noise = differences.var(axis=0) / max(len(differences) - 1, 1)
    return np.asarray(mean * np.clip(1 - noise / np.maximum(mean**2, 1e-30), 0, 1), np.float32)


def _store(graph: Graph, layer: Layer, shift: Floats) -> None:
    if layer.bias is not None:
        before = graph.array(layer.bias)
        if layer.bias_scale is not None:
            before = before * graph.array(layer.bias_scale)
        layer.store_bias(graph, before + shift, graph.array(layer.scale))
