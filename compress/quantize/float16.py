"""FP16 graphs for GPUs: half the bytes, and the fast path of their matrix units; float32 in and out as before."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from compress.quantize.calibration import activations, extremes
from compress.quantize.observe import Feeds
from compress.quantize.quantizer import quiet
from zoo.artefact.onnx_file import strip_traces
from zoo.base.errors import ArtefactError, CheckError

__all__ = ["LARGEST", "check_activations", "halve"]

LARGEST = float(np.finfo(np.float16).max)
"""What is beyond it becomes infinite."""


def halve(model: ModelProto) -> ModelProto:
    """A copy whose weights and arithmetic are float16, with casts behind the input and before the output.

    ONNX Runtime's converter keeps operators in float32 that have no float16 kernel. Activations may still overflow; see
    :func:`check_activations`.

    Raises:
        ArtefactError: there is no float weight, or one too large for float16.
    """
    bare = ModelProto()
    bare.CopyFrom(model)
    floats = [tensor for tensor in bare.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    if not floats:
        raise ArtefactError("the graph has no float32 weights to halve; export it again with `pocketzoo export`")
    for tensor in floats:
        worst = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
        if not worst <= LARGEST:
            raise ArtefactError(
                f"the weights {tensor.name} reach {worst:.3g}, float16 ends at {LARGEST:.0f}; "
                "quantize with `--method static` instead"
            )
    # The smallest weights become the smallest number above zero, and the converter warns of each tensor.
    with quiet():
        done: ModelProto = convert_float_to_float16(strip_traces(bare), keep_io_types=True)
    # The converter appends its casts, and a valid file has every node behind those it reads.
    ONNXModel(done).topological_sort()
    return done


def check_activations(model: ModelProto, feeds: Feeds) -> None:
    """Check that no activation of a float graph is too large for float16.

    The halved graph itself would not show it here: on the CPU ONNX Runtime computes most of it in float32.

    Raises:
        CheckError: one is; it is named.
        DataError: no images.
    """
    names = activations(model, model.graph.node)
    for name, (low, high) in extremes(model, feeds, names).items():
        if max(abs(low), abs(high)) > LARGEST:
            raise CheckError(
                f"the activation {name} reaches {low:.3g} to {high:.3g}, float16 ends at {LARGEST:.0f}; "
                "quantize with `--method static` instead"
            )
