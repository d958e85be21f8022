"""The layers of a QDQ graph, beside the float graph that it was made from.

Notation: G groups, O output channels of one group, K weights of one output channel, N samples.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

__all__ = ["Graph", "Layer", "layers"]

Floats = npt.NDArray[np.float32]

_INT32 = np.iinfo(np.int32)


class Graph:
    """A model's initializers, producers and readers by name, found once; writes through to the model."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producers = {name: node for node in model.graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in model.graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._outputs = {value.name for value in model.graph.output}

    def array(self, name: str) -> npt.NDArray[Any]:
        """An initializer's values."""
        return np.asarray(numpy_helper.to_array(self.tensors[name]))

    def store(self, name: str, values: npt.NDArray[Any]) -> None:
        """Replace an initializer's values; its shape and type must stay."""
        before = self.array(name)
        if (before.shape, before.dtype) != (values.shape, values.dtype):
            raise ValueError(f"{name}: expected {before.dtype} {before.shape}, got {values.dtype} {values.shape}")
        self.tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    def dequantizer(self, name: str) -> NodeProto | None:
        """The DequantizeLinear node that makes this tensor."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None

    def only_reader(self, name: str) -> NodeProto | None:
        """The node that alone reads this tensor, and once; None where it is read more often or is an output."""
        readers = self._readers.get(name, [])
        return readers[0] if len(readers) == 1 and name not in self._outputs else None

    def shared(self, name: str) -> bool:
        """Whether this tensor is read more than once."""
        return len(self._readers.get(name, [])) > 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A convolution or matrix product with INT8 weights, one scale per output channel."""

    node: NodeProto
    """In the quantized graph."""
    source: str
    """The layer's input in the float graph."""
    output: str
    """The layer's output in the float graph."""
    weight: Floats
    """The float graph's, as it is stored there."""
    codes: str
    """Initializer, int8, of the weight's shape."""
    scale: str
    """Initializer, float32 [G * O]."""
    input_scale: float
    bias: str | None
    """Initializer [G * O] that is added to the output: int32, to be multiplied with `bias_scale`, or float32."""
    bias_scale: str | None
    """Initializer, float32 [G * O]; None where the bias is a float."""
    float_bias: Floats | None
    """The float graph's [G * O]."""
    groups: int
    shared: bool
    """Whether other nodes use the same weights."""

    @property
    def depthwise(self) -> bool:
        """Whether each output channel sees one input channel, and each input channel one output channel."""
        return self.node.op_type == "Conv" and self.groups > 1 and self.weight.shape[:2] == (self.groups, 1)

    @property
    def fan_in(self) -> int:
        """Weights of one output channel."""
        return int(self.weight.size // self.weight.shape[_axis(self.node)])

    def rows(self, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Weights as [G, O, K], with K in the order in which ONNX Runtime's kernels walk it.

        Convolutions are computed with channels last: kernel position by kernel position, all input channels of each.
        """
        if self.node.op_type == "Conv":
            last = np.moveaxis(weight, 1, -1)
            return np.asarray(last.reshape(self.groups, weight.shape[0] // self.groups, -1))
        return np.asarray(weight if self._transposed else weight.T)[None]

    def unrows(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The inverse of :meth:`rows`."""
        if self.node.op_type == "Conv":
            shape = self.weight.shape
            return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
        return np.asarray(rows[0] if self._transposed else rows[0].T)

    def store_bias(self, graph: Graph, bias: npt.NDArray[Any], scale: Floats) -> None:
        """Write a bias [G * O] for weights of these scales [G * O]."""
        if self.bias is None:
            raise ValueError(f"{self.node.name} has no bias")
        if self.bias_scale is None:
            graph.store(self.bias, bias.astype(np.float32))
            return
        unit = np.float32(self.input_scale) * scale
        codes = np.rint(bias.astype(np.float64) / unit)
        graph.store(self.bias_scale, unit)
        graph.store(self.bias, np.clip(codes, _INT32.min, _INT32.max).astype(np.int32))

    def sample(self, activation: Floats, count: int, random: np.random.Generator) -> Floats:
        """What the layer multiplies its weights with, at random places: [N, G, K], N about `count`.

        Args:
            activation: the layer's input, [batch, C, ...] for a convolution, else [..., K].
            count: places to draw over the whole batch, with repetition.
            random: draws them.
        """
        if self.node.op_type != "Conv":
            flat = activation.reshape(-1, activation.shape[-1])
            keep = random.choice(len(flat), count) if len(flat) > count else np.arange(len(flat))
            return flat[keep][:, None]
        kernel = self.weight.shape[2:]
        rank = len(kernel)
        strides, dilations = (self._attribute(name, [1] * rank) for name in ("strides", "dilations"))
        pads = self._attribute("pads", [0] * (2 * rank))
        around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
        padded = np.pad(activation, around) if any(pads) else activation
        reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
        places = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
        total = len(activation) * math.prod(places)
        drawn = random.choice(total, count) if total > count else np.arange(total)
        image, *place = np.unravel_index(drawn, (len(activation), *places))
        offsets = np.stack(np.meshgrid(*map(np.arange, kernel), indexing="ij"), axis=-1).reshape(-1, rank)
        picked = [
            place[axis][:, None] * strides[axis] + offsets[None, :, axis] * dilations[axis] for axis in range(rank)
        ]
        found = padded[image[:, None], :, *picked]  # [N, positions, C]
        split = found.reshape(len(drawn), len(offsets), self.groups, -1)
        return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(len(drawn), self.groups, -1)

    @property
    def _transposed(self) -> bool:
        return _axis(self.node) == 0

    def _attribute(self, name: str, default: Any) -> Any:
        return _attributes(self.node).get(name, default)


def layers(quantized: Graph, parent: Graph) -> list[Layer]:
    """The layers that can be changed, in the order of execution; others are left out.

    Left out are those without the same node (by name and type) in the float graph, with constant inputs that differ
    from what ONNX Runtime's QDQQuantizer writes, or with attributes that no exporter sets today.
    """
    named = Counter(node.name for node in parent.model.graph.node)
    twins = {node.name: node for node in parent.model.graph.node if named[node.name] == 1}
    found = []
    for node in quantized.model.graph.node:
        twin = twins.get(node.name)
        if twin is not None and twin.op_type == node.op_type and node.op_type in ("Conv", "Gemm", "MatMul"):
            layer = _layer(node, twin, quantized, parent)
            if layer is not None:
                found.append(layer)
    return found


def _layer(node: NodeProto, twin: NodeProto, quantized: Graph, parent: Graph) -> Layer | None:
    weights, activations = quantized.dequantizer(node.input[1]), quantized.dequantizer(node.input[0])
    if weights is None or activations is None or twin.input[1] not in parent.tensors or not _plain(node):
        return None
    if any(name not in quantized.tensors for name in (*weights.input, activations.input[1])):
        return None
    weight, input_scale = parent.array(twin.input[1]), quantized.array(activations.input[1])
    if not _per_channel(node, weights, quantized, weight) or input_scale.size != 1:
        return None
    bias, bias_scale, float_bias = _bias(node, twin, quantized, parent, weight.shape[_axis(node)])
    if len(node.input) > 2 and bias is None:
        return None
    return Layer(
        node=node,
        source=twin.input[0],
        output=twin.output[0],
        weight=weight,
        codes=weights.input[0],
        scale=weights.input[1],
        input_scale=float(input_scale.reshape(-1)[0]),
        bias=bias,
        bias_scale=bias_scale,
        float_bias=float_bias,
        groups=_attributes(node).get("group", 1),
        shared=quantized.shared(weights.input[0]) or quantized.shared(node.input[1]),
    )


def _plain(node: NodeProto) -> bool:
    """Whether the node computes weight times input plus bias, with paddings that are written down."""
    given = _attributes(node)
    padded = given.get("auto_pad", b"NOTSET") == b"NOTSET"
    return bool(padded and given.get("alpha", 1) == 1 and given.get("beta", 1) == 1 and not given.get("transA"))


def _axis(node: NodeProto) -> int:
    """The axis of the weight that counts the outputs."""
    return 0 if node.op_type == "Conv" or _attributes(node).get("transB") else 1


def _per_channel(node: NodeProto, dequantizer: NodeProto, graph: Graph, weight: Floats) -> bool:
    """Whether codes are INT8 around zero, with one scale for each output, of a float weight of the same shape."""
    codes, scale, *zeros = (graph.array(name) for name in dequantizer.input)
    axis = _attributes(dequantizer).get("axis", 1)
    matrix = weight.ndim == 2 or (node.op_type == "Conv" and weight.ndim > 2)
    return bool(
        matrix
        and weight.dtype == np.float32
        and codes.dtype == np.int8
        and codes.shape == weight.shape
        and axis % weight.ndim == _axis(node)
        and scale.shape == (weight.shape[_axis(node)],)
        and not any(zero.any() for zero in zeros)
    )


def _bias(
    node: NodeProto, twin: NodeProto, quantized: Graph, parent: Graph, width: int
) -> tuple[str | None, str | None, Floats | None]:
    """Names of the bias and its scale, and the float graph's values."""
    if len(node.input) < 3:
        return _added(node, quantized, parent, width)
    name = node.input[2]
    maker = quantized.dequantizer(name)
    stored = list(maker.input[:2]) if maker is not None else [name]
    shared = quantized.shared(name) or quantized.shared(stored[0])
    if shared or twin.input[2] not in parent.tensors or any(entry not in quantized.tensors for entry in stored):
        return None, None, None
    arrays, values = [quantized.array(entry) for entry in stored], parent.array(twin.input[2])
    kind = np.float32 if maker is None else np.int32
    if arrays[0].dtype != kind or any(array.shape != (width,) for array in (*arrays, values)):
        return None, None, None
    return stored[0], stored[1] if maker is not None else None, values


def _added(
    node: NodeProto, quantized: Graph, parent: Graph, width: int
) -> tuple[str | None, str | None, Floats | None]:
    """The float bias of an Add that follows a matrix product, as transformers have it."""
    name = node.output[0]
    while node.op_type == "MatMul" and (user := quantized.only_reader(name)) is not None:
        if user.op_type == "Add":
            (other,) = set(user.input) - {name}
            constant = other in quantized.tensors and not quantized.shared(other) and other in parent.tensors
            if constant and quantized.array(other).shape == (width,):
                return other, None, parent.array(other)
        if user.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            break
        name = user.output[0]
    return None, None, None


def _attributes(node: NodeProto) -> Mapping[str, Any]:
    """A node's attributes by name."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
