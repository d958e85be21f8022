"""Small float graphs and their INT8 forms, as ONNX Runtime's quantizer makes them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from compress.quantize.observe import session
from compress.quantize.quantizer import quiet

Floats = npt.NDArray[np.float32]


def make(nodes: Sequence[NodeProto], tensors: dict[str, Floats], *, shape: Sequence[Any], rank: int = 4) -> ModelProto:
    """A graph from `x` to `y`."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(values, name) for name, values in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def weights(shape: Sequence[int], seed: int) -> Floats:
    fan_in = int(np.prod(shape[1:]))
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def blocks(depth: int = 1, channels: int = 16, *, kind: str = "Relu") -> ModelProto:
    """Blocks of a 1x1, a depthwise 3x3 and a 1x1 convolution, each of the first two rectified."""
    nodes, tensors, last = [], {}, "x"
    for index in range(depth * 3):
        name, depthwise = f"c{index}", index % 3 == 1
        tensors[f"{name}.w"] = weights((channels, 1, 3, 3) if depthwise else (channels, channels, 1, 1), index)
        tensors[f"{name}.b"] = weights((channels,), 100 + index)
        final = index == depth * 3 - 1
        rectified = index % 3 < 2
        out = "y" if final else f"{name}.out"
        nodes.append(
            helper.make_node(
                "Conv",
                [last, f"{name}.w", f"{name}.b"],
                [f"{name}.raw" if rectified else out],
                name=name,
                group=channels if depthwise else 1,
                pads=[1] * 4 if depthwise else [0] * 4,
            )
        )
        if rectified:
            nodes.append(helper.make_node(kind, [f"{name}.raw"], [out], name=f"{name}.act"))
        last = out
    return make(nodes, tensors, shape=["n", channels, 6, 6])


def correlated(count: int, channels: int, *, seed: int = 0, size: tuple[int, ...] = (6, 6)) -> Floats:
    """Images whose channels depend on each other, as activations do: [count, channels, *size]."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((channels, max(channels // 4, 1)))
    sources = random.standard_normal((count, mixing.shape[1], *size)) + 0.5
    noise = 0.1 * random.standard_normal((count, channels, *size))
    return (np.einsum("cs,ns...->nc...", mixing, sources) + noise).astype(np.float32)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, feeds: Sequence[dict[str, Floats]]) -> None:
        self._feeds: Iterator[dict[str, Floats]] = iter(feeds)

    def get_next(self) -> dict[str, Floats] | None:
        return next(self._feeds, None)


def int8(parent: ModelProto, images: Floats, *, reduce_range: bool = True, per_channel: bool = True) -> ModelProto:
    with tempfile.TemporaryDirectory() as scratch, quiet():
        source, target = Path(scratch) / "float.onnx", Path(scratch) / "int8.onnx"
        onnx.save(parent, str(source))
        quantize_static(
            str(source),
            str(target),
            _Reader([{"x": images}]),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(str(target))


def run(model: ModelProto, images: Floats) -> Floats:
    answer: Floats = session(model, exact=True).run(["y"], {"x": images})[0]
    return answer


def feeds(images: Floats, size: int = 16) -> list[dict[str, Floats]]:
    """Batches of `size` images."""
    return [{"x": images[start : start + size]} for start in range(0, len(images), size)]


def error(model: ModelProto, parent: ModelProto, images: Floats) -> float:
    """Mean squared difference of the answers."""
    return float(((run(model, images) - run(parent, images)) ** 2).mean())


def arrays(model: ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
