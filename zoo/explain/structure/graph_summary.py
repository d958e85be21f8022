"""An ONNX file in numbers: its nodes, its weights by type, what goes in and what comes out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import AttributeProto, ModelProto, TensorProto

from zoo.artefact.card import Card
from zoo.artefact.onnx_file import load

__all__ = ["GraphSummary", "Weights", "summarise"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The stored numbers of one type."""

    tensors: int
    numbers: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class GraphSummary:
    """What is in an ONNX file."""

    opsets: dict[str, int]
    """Domain of operators ("ai.onnx" is ONNX's own) -> version."""
    inputs: dict[str, str]
    """Name -> type and shape, like "float32 [batch, 3, 32, 32]"."""
    outputs: dict[str, str]
    nodes: dict[str, int]
    """Kind of node -> how many there are, the most frequent first."""
    weights: dict[str, Weights]
    """Type, like "float32" -> what is stored in it, the most bytes first."""
    file_bytes: int


def summarise(path: Path) -> tuple[GraphSummary, Card]:
    """Read an ONNX file, and count what is in it.

    Raises:
        ArtefactError, CardError, CheckError: see zoo.artefact.onnx_file.load.
    """
    model, card = load(path)
    graph = model.graph
    kinds = Counter(f"{node.domain}.{node.op_type}" if node.domain else node.op_type for node in graph.node)
    stored = {tensor.name for tensor in graph.initializer}
    return (
        GraphSummary(
            opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
            inputs={value.name: _described(value) for value in graph.input if value.name not in stored},
            outputs={value.name: _described(value) for value in graph.output},
            nodes=dict(sorted(kinds.items(), key=lambda item: (-item[1], item[0]))),
            weights=_weights(model),
            file_bytes=path.stat().st_size,
        ),
        card,
    )


def _weights(model: ModelProto) -> dict[str, Weights]:
    constants = [
        attribute.t
        for node in model.graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.type == AttributeProto.TENSOR
    ]
    found: dict[str, Weights] = {}
    for tensor in (*model.graph.initializer, *constants):
        name = _type(tensor.data_type)
        before = found.get(name, Weights(tensors=0, numbers=0, bytes=0))
        size = onnx.numpy_helper.to_array(tensor).nbytes
        found[name] = Weights(
            tensors=before.tensors + 1, numbers=before.numbers + math.prod(tensor.dims), bytes=before.bytes + size
        )
    return dict(sorted(found.items(), key=lambda item: -item[1].bytes))


def _described(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    sizes = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim]
    return f"{_type(tensor.elem_type)} [{', '.join(sizes)}]"


def _type(number: int) -> str:
    name: str = TensorProto.DataType.Name(number).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)
