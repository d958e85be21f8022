"""INT8 graphs: which nodes are quantized, with which settings, for which processor.

ONNX Runtime's own defaults lose many points on x86 without VNNI: the 8-bit products of `vpmaddubsw` are added in
pairs in 16 bits and saturate. What is quantized, and what stays in float, is what pays in ONNX Runtime's kernels.
"""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto, NodeProto
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.quantize.calibration import activations
from compress.quantize.qdq_layers import Graph
from compress.quantize.targets import Target
from zoo.artefact.onnx_file import strip_traces

__all__ = [
    "dynamic",
    "is_transformer",
    "prepare",
    "quantizable",
    "quiet",
    "rectified",
    "static",
    "to_calibrate",
    "weighted",
]


_CONVOLUTIONAL = (
    "Conv",
    "Gemm",
    "MatMul",
    "Add",
    "Clip",
    "Relu",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
)
_PRODUCTS = ("Conv", "Gemm", "MatMul")
_RECTIFIERS = ("Clip", "Relu")


def prepare(model: ModelProto) -> ModelProto:
    """A copy of an exported graph as the quantizers need it: shapes inferred, constants folded, every node named."""
    bare = ModelProto()
    bare.CopyFrom(model)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        source, target = Path(scratch) / "source.onnx", Path(scratch) / "prepared.onnx"
        onnx.save(strip_traces(bare), str(source))
        quant_pre_process(str(source), str(target), skip_symbolic_shape=True)
        prepared = onnx.load(str(target))
    seen = Counter(node.name for node in prepared.graph.node)
    for index, node in enumerate(prepared.graph.node):
        if not node.name or seen[node.name] > 1:
            node.name = f"{node.op_type}_{index}"
    used = {node.domain for node in prepared.graph.node} | {""}
    kept = [entry for entry in prepared.opset_import if ("" if entry.domain == "ai.onnx" else entry.domain) in used]
    del prepared.opset_import[:]
    prepared.opset_import.extend(kept)
    return prepared


def is_transformer(model: ModelProto) -> bool:
    """Whether the graph has layer normalization or softmax, which stay in float, and with them all but the products."""
    return any(node.op_type in ("LayerNormalization", "Softmax") for node in model.graph.node)


def weighted(model: ModelProto) -> list[NodeProto]:
    """The convolutions and matrix products with constant weights, in order of execution: where the work is."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in _PRODUCTS and node.input[1] in constants]


def quantizable(prepared: ModelProto) -> list[NodeProto]:
    """The nodes that :func:`static` quantizes, in order of execution.

    In transformers that is the products with weights alone: products of two activations, as in attention, are small,
    and quantizing around them takes longer than it saves (measured on ViT-Tiny).
    """
    products = {node.name for node in weighted(prepared)}
    kinds = _PRODUCTS if is_transformer(prepared) else _CONVOLUTIONAL
    return [
        node
        for node in prepared.graph.node
        if node.op_type in kinds and (node.op_type not in _PRODUCTS or node.name in products)
    ]


def to_calibrate(prepared: ModelProto, target: Target) -> list[str]:
    """The activations whose ranges :func:`static` needs.

    A convolution's output that only a rectifier reads is not among them: the rectifier's output stands for it.
    """
    hidden = {} if target.symmetric_activations else rectified(prepared)
    return [name for name in activations(prepared, _kinds(prepared)) if name not in hidden]


def static(prepared: ModelProto, ranges: TensorsData, target: Target, *, floats: Collection[str] = ()) -> ModelProto:
    """Quantize weights and activations: a graph of QuantizeLinear and DequantizeLinear around the nodes.

    Args:
        prepared: see :func:`prepare`; not changed.
        ranges: of the activations in :func:`to_calibrate`; not changed.
        target: settings.
        floats: names of nodes that stay in float.
    """
    model = ModelProto()
    model.CopyFrom(prepared)
    found = copy.deepcopy(ranges)
    for hidden, shown in rectified(prepared).items():
        if hidden not in found and shown in found:
            found.data[hidden] = copy.deepcopy(found[shown])
    nodes = [node.name for node in quantizable(prepared) if node.name not in set(floats)]
    options: dict[str, Any] = {"ActivationSymmetric": target.symmetric_activations, "WeightSymmetric": True}
    if target.pairs:
        options |= {"AddQDQPairToWeight": True, "DedicatedQDQPair": True, "QuantizeBias": False}
    if is_transformer(prepared):
        # A product's float output goes to a bias, GELU or softmax; there is a kernel that writes it directly.
        options["OpTypesToExcludeOutputQuantization"] = ["MatMul", "Gemm"]
    if not nodes:
        return model
    with quiet():
        quantizer = QDQQuantizer(
            model,
            True,
            target.reduce_range,
            QuantType.QInt8,
            QuantType.QUInt8 if target.unsigned_activations else QuantType.QInt8,
            found,
            nodes,
            [],
            list(_kinds(prepared)),
            options,
        )
        done: ModelProto = quantizer.quantize_model()
        quantizer.model.topological_sort()
    return done


def dynamic(prepared: ModelProto, target: Target) -> ModelProto:
    """Quantize the weights of matrix products; activations get their range while running, from each image itself."""
    bare = ModelProto()
    bare.CopyFrom(prepared)
    with tempfile.TemporaryDirectory() as scratch, quiet():
        source, done = Path(scratch) / "source.onnx", Path(scratch) / "int8.onnx"
        # The exporter's stored shapes contradict those inferred after quantization.
        onnx.save(strip_traces(bare), str(source))
        quantize_dynamic(
            str(source),
            str(done),
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=target.reduce_range,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(str(done))


def _kinds(prepared: ModelProto) -> tuple[str, ...]:
    return _PRODUCTS if is_transformer(prepared) else _CONVOLUTIONAL


def rectified(model: ModelProto) -> dict[str, str]:
    """Output of a node -> output of the rectifier that alone reads it, where the quantizer drops the rectifier."""
    if is_transformer(model):
        return {}
    graph = Graph(model)
    behind = [node for node in model.graph.node if node.op_type in _RECTIFIERS and node.input[0] in graph.producers]
    return {node.input[0]: node.output[0] for node in behind if graph.only_reader(node.input[0]) is not None}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep ONNX Runtime's tools from logging advice on the root logger that has been followed, and from warning."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
