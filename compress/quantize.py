"""Static INT8 quantization of an exported graph, with the settings that suit the instruction set.

ONNX Runtime's own defaults lose many points on x86 without VNNI: the 8-bit products of `vpmaddubsw` are added
in pairs in 16 bits and saturate. Its documentation of `quantize_static` gives the remedy used here: unsigned
activations, signed weights of 7 bits (`reduce_range`), one scale per channel.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from compress.publish import publish
from zoo.card import Card, Input, Stage, advance, allow
from zoo.datasets.base import Dataset, Sample
from zoo.errors import ArtefactError, DataError, unknown_name
from zoo.evaluate import logits_of
from zoo.files import code_commit, sha256_file
from zoo.graph import load, strip_traces
from zoo.image import batch
from zoo.predictor import Predictor
from zoo.recipe import QuantizeConfig

__all__ = ["CALIBRATIONS", "TARGETS", "Target", "detect_target", "quantize"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Quantizer settings for one family of CPUs."""

    unsigned_activations: bool
    reduce_range: bool


TARGETS = {
    "portable": Target(unsigned_activations=True, reduce_range=True),
    "vnni": Target(unsigned_activations=True, reduce_range=False),
    "arm": Target(unsigned_activations=False, reduce_range=False),
}
"""onnxruntime.quantization.quantize_static's documentation (1.31), by instruction set.

`portable` is what x86 without VNNI needs, and saturates on no machine; the others are a little more precise, and wrong
elsewhere."""

CALIBRATIONS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}

_CONVOLUTIONAL = [
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
]
_TRANSFORMER = ["Conv", "Gemm", "MatMul"]
_CALIBRATION_BATCH = 16


def detect_target() -> str:
    """The key of TARGETS that suits this machine's processor."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    import cpuinfo

    flags = set(cpuinfo.get_cpu_info().get("flags", ()))
    return "vnni" if flags & {"avx512_vnni", "avx512vnni", "avx_vnni", "avxvnni"} else "portable"


def quantize(source: Path, target: Path, config: QuantizeConfig, *, dataset: Dataset, name: str | None = None) -> Card:
    """Quantize an exported graph to INT8, calibrated on training images.

    Args:
        source: ONNX file of the export stage.
        target: ONNX file to write.
        config: settings.
        dataset: calibrates on its training split, compares with the parent on its validation split.
        name: of the new artefact.

    Returns:
        The card as written; its last lineage entry has the agreement with the parent on validation images.

    Raises:
        ArtefactError: wrong stage, or a graph without anything to quantize.
        UsageError: unknown target or calibration.
        DataError: no calibration images.
    """
    begin = time.perf_counter()
    proto, card = load(source)
    allow(card, "quantize")
    if config.target not in (*TARGETS, "auto"):
        raise unknown_name("quantization target", config.target, [*TARGETS, "auto"])
    if config.calibration not in CALIBRATIONS:
        raise unknown_name("calibration method", config.calibration, CALIBRATIONS)
    samples = list(dataset.splits["train"])
    random.Random(config.seed).shuffle(samples)
    samples = samples[: config.images]
    if not samples:
        raise DataError("quantization needs at least one calibration image")
    isa = detect_target() if config.target == "auto" else config.target
    quantized = _quantize(proto, card.use.input, samples, config, TARGETS[isa])
    nodes = Counter(node.op_type for node in quantized.graph.node)
    if not nodes["DequantizeLinear"]:
        raise ArtefactError(f"{source}: nothing in this graph can be quantized")
    entry = Stage(
        stage="quantize",
        config=dataclasses.asdict(config),
        parent=sha256_file(source),
        seed=config.seed,
        commit=code_commit(),
        summary={"target": isa, **dataclasses.asdict(TARGETS[isa]), "calibration_images": len(samples)},
    )
    child = advance(card, entry, name=name)
    child = dataclasses.replace(child, inform=dataclasses.replace(child.inform, precision="int8"))

    def check(predictor: Predictor) -> dict[str, Any]:
        return {"agreement": round(_agreement(Predictor(source), predictor, dataset.splits["validation"]), 4)}

    return publish(quantized, child, target, dataset=dataset, begin=begin, check=check)


def _quantize(
    proto: ModelProto, spec: Input, samples: Sequence[Sample], config: QuantizeConfig, target: Target
) -> ModelProto:
    transformer = any(node.op_type in ("LayerNormalization", "Softmax") for node in proto.graph.node)
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        parent, prepared, done = (Path(scratch) / f"{stem}.onnx" for stem in ("parent", "prepared", "int8"))
        onnx.save(strip_traces(proto), str(parent))
        quant_pre_process(str(parent), str(prepared), skip_symbolic_shape=True)
        graph = onnx.load(str(prepared))
        quantize_static(
            str(prepared),
            str(done),
            _Reader(samples, spec),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_TRANSFORMER if transformer else _CONVOLUTIONAL,
            nodes_to_exclude=_kept_in_float(graph),
            per_channel=True,
            reduce_range=target.reduce_range,
            activation_type=QuantType.QUInt8 if target.unsigned_activations else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CALIBRATIONS[config.calibration],
            extra_options={"TensorQuantOverrides": _full_range(graph)},
        )
        return onnx.load(str(done))


def _full_range(proto: ModelProto) -> dict[str, list[dict[str, Any]]]:
    """ONNX Runtime's overrides that give depthwise weights all 8 bits on every machine.

    Its depthwise kernel multiplies in 16 and adds in 32 bits (mlas/lib/qdwconv.cpp), so nothing saturates, and these
    weights are the ones that 7 bits hurt most.
    """
    full = {"quant_type": QuantType.QInt8, "axis": 0, "symmetric": True, "reduce_range": False}
    return {node.input[1]: [full] for node in _depthwise(proto)}


def _depthwise(proto: ModelProto) -> list[onnx.NodeProto]:
    """Convolutions with one input and one output channel per group.

    Those with wider groups (ResNeXt) run as matrix products, which do saturate, so they do not count.
    """
    shapes = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    found = []
    for node in proto.graph.node:
        groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
        if node.op_type == "Conv" and groups > 1 and shapes.get(node.input[1], [])[:2] == [groups, 1]:
            found.append(node)
    return found


def _kept_in_float(proto: ModelProto) -> list[str]:
    """Names of the nodes that cost more than they bring.

    Matrix products of two activations, as in attention, are small, and quantizing around them takes longer. In
    networks with depthwise convolutions the first three convolutions carry much of the error and little of the work.
    """
    constants = {tensor.name for tensor in proto.graph.initializer}
    products = [node.name for node in proto.graph.node if node.op_type == "MatMul" and not set(node.input) & constants]
    convolutions = [node.name for node in proto.graph.node if node.op_type == "Conv"]
    return products + (convolutions[:3] if _depthwise(proto) else [])


def _agreement(parent: Predictor, child: Predictor, samples: Sequence[Sample]) -> float:
    """Share of images on which both answer the same label."""
    answers = [logits_of(model.logits, samples, child.card.use.input).argmax(axis=1) for model in (parent, child)]
    return float((answers[0] == answers[1]).mean())


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds preprocessed images to ONNX Runtime's calibration, a small batch at a time."""

    def __init__(self, samples: Sequence[Sample], spec: Input) -> None:
        self._feeds = self._make(samples, spec)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The next batch by input name, or None at the end."""
        return next(self._feeds, None)

    @staticmethod
    def _make(samples: Sequence[Sample], spec: Input) -> Iterator[dict[str, npt.NDArray[np.float32]]]:
        for start in range(0, len(samples), _CALIBRATION_BATCH):
            yield {spec.name: batch([s.read() for s in samples[start : start + _CALIBRATION_BATCH]], spec)}


class _quiet:  # noqa: N801 (used like contextlib's lower-case managers)
    """ONNX Runtime's quantizer logs advice on the root logger that has been followed."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *details: object) -> None:
        self._warnings.__exit__(None, None, None)
        logging.disable(self._before)
