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
    "interruptions",
    "prepare",
    "quantizable",
    "quiet",
    "rectified",
    "static",
    "stems",
    "to_calibrate",
    "weighted",
]


_PRODUCTS = ("Conv", "Gemm", "MatMul")
_FLOAT_OUTPUTS = ("Gemm", "MatMul")
"""What they write goes to a bias, GELU, softmax or to the user, and there are kernels that write it as float. Logits in
256 steps would also differ by a step between engines that round differently by the last bit."""
_FOLLOWERS = ("Add", "AveragePool", "Clip", "Concat", "GlobalAveragePool", "MaxPool", "Mul", "Relu", "Sigmoid")
"""Quantized between layers that are: there INT8 is read and written anyway. With Sigmoid and Mul, SiLU and the gates of
squeeze-and-excitation, efficientnet_b0 takes 10.3 ms instead of 12.7 in ONNX Runtime (FP32: 11.8)."""
_COMPUTED = (*_FOLLOWERS, "Div", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Tanh")
"""What takes time where it is in float; other nodes move numbers, or are few."""
_SUSPICIOUS = 0.25
"""Share of the convolutions between INT8 and float from which on INT8 may be slower than FP32."""
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


def weighted(model: ModelProto) -> list[NodeProto]:
    """The convolutions and matrix products with constant weights, in order of execution: where the work is."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type in _PRODUCTS and node.input[1] in constants]


def stems(model: ModelProto) -> list[NodeProto]:
    """The convolutions and products that see the input first: no other one is between it and them.

    They are few operations on the values that need their precision most, and OpenVINO does not compute them in INT8 as
    the graph says (2026.4: a patch embedding's logits are off by 0.5).
    """
    products = {node.name for node in weighted(model)}
    raw = {value.name for value in model.graph.input}
    found = []
    for node in model.graph.node:
        if raw.isdisjoint(node.input):
            continue
        if node.name in products:
            found.append(node)
        elif node.op_type not in ("Shape", "Size"):
            raw.update(node.output)
    return found


def quantizable(prepared: ModelProto, floats: Collection[str] = ()) -> list[NodeProto]:
    """The nodes that :func:`static` quantizes, in order of execution.

    These are the products with weights but for the stems, and between them what reads nothing but INT8. Products of two
    activations, as in attention, are small, and quantizing around them takes longer than it saves (measured on
    ViT-Tiny). A network of stems alone is quantized whole.

    Args:
        prepared: see :func:`prepare`.
        floats: names of nodes that stay in float, and with them what then reads no INT8.
    """
    first = {node.name for node in stems(prepared)}
    layers = weighted(prepared)
    chosen = ({node.name for node in layers if node.name not in first} or first).difference(floats)
    constants = {tensor.name for tensor in prepared.graph.initializer}
    inside = {node.input[0] for node in layers if node.name in chosen}
    found = []
    for node in prepared.graph.node:
        if node.op_type in _FOLLOWERS:
            read = {name for name in node.input if name and name not in constants}
            taken = node.name not in floats and inside.issuperset(read)
        else:
            taken = node.name in chosen
        if taken:
            found.append(node)
            inside.update(node.output if node.op_type not in _FLOAT_OUTPUTS else ())
    return found


def interruptions(prepared: ModelProto) -> dict[str, int]:
    """Kinds of nodes that compute in float what a quantized convolution wrote in INT8, and how often each does.

    Empty where these are few: then INT8 gains. HardSwish is such a kind (no engine has it in INT8): with it
    mobilenetv3_large_100 still gains, efficientvit_b0 does not.
    """
    taken = quantizable(prepared)
    names = {node.name for node in taken}
    written = {name for node in taken for name in node.output if node.op_type == "Conv"}
    behind = [
        node
        for node in prepared.graph.node
        if node.op_type in _COMPUTED and node.name not in names and not written.isdisjoint(node.input)
    ]
    read = written & {name for node in behind for name in node.input}
    return dict(Counter(node.op_type for node in behind)) if len(read) > _SUSPICIOUS * len(written) else {}


def to_calibrate(prepared: ModelProto, target: Target) -> list[str]:
    """The activations whose ranges :func:`static` needs.

    A convolution's output that only a rectifier reads is not among them: the rectifier's output stands for it.
    """
    hidden = {} if target.symmetric_activations else rectified(prepared)
    return [name for name in activations(prepared, quantizable(prepared)) if name not in hidden]


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
    chosen = quantizable(prepared, floats)
    options: dict[str, Any] = {
        "ActivationSymmetric": target.symmetric_activations,
        "WeightSymmetric": True,
        "OpTypesToExcludeOutputQuantization": list(_FLOAT_OUTPUTS),
    }
    if target.pairs:
        options |= {"AddQDQPairToWeight": True, "DedicatedQDQPair": True, "QuantizeBias": False}
    if not chosen:
        return model
    with quiet():
        quantizer = QDQQuantizer(
            model,
            True,
            target.reduce_range,
            QuantType.QInt8,
            QuantType.QUInt8 if target.unsigned_activations else QuantType.QInt8,
            found,
            [node.name for node in chosen],
            [],
            sorted({node.op_type for node in chosen}),
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


def rectified(model: ModelProto) -> dict[str, str]:
    """Output of a node -> output of the rectifier that alone reads it, where the quantizer drops the rectifier."""
    graph = Graph(model)
    taken = quantizable(model)
    written = {name for node in taken if node.op_type not in _FLOAT_OUTPUTS for name in node.output}
    behind = [node for node in taken if node.op_type in _RECTIFIERS and node.input[0] in written]
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
