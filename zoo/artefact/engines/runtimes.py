"""The runtimes that compute a graph: ONNX Runtime, and OpenVINO where it is installed. `B` images, `K` labels.

A name is a runtime and the precision it computes in, since both decide about the answers.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from zoo.artefact.card import Card
from zoo.artefact.engines.names import REFERENCE, preference
from zoo.base.errors import ArtefactError

__all__ = [
    "DISABLED",
    "ENGINES",
    "INSTALL",
    "OTHERS",
    "REFERENCE",
    "Engine",
    "How",
    "default_providers",
    "lacking",
    "preference",
]

ort.set_default_logger_severity(3)

INSTALL = "pip install 'pocketzoo[openvino]'"

DISABLED = ("WeightBiasQuantization",)
"""Of ONNX Runtime's optimizers: it would quantize, coarsely, the weights of layers that were left in float to keep the
accuracy. With the 16 depthwise convolutions of EfficientNet-Lite0 in float, logits are off by 0.20 with it and by 0.03
without."""
_SPIN_US = "500"
"""Microseconds: in a loop and after pauses of 2 ms as fast as spinning without an end, and an idle core soon rests."""

Floats = npt.NDArray[np.float32]


class Engine(Protocol):
    """A loaded graph. Calls may come from several threads."""

    name: str
    """A key of ENGINES."""
    on_gpu: bool
    """Whether a device other than the processor computes."""

    def logits(self, images: Floats) -> Floats:
        """Raw outputs float32 [B, K] of preprocessed images float32 [B, C, H, W]."""


def default_providers() -> list[str]:
    """CUDA where this ONNX Runtime has it and the machine has an NVIDIA device; else the CPU."""
    if "CUDAExecutionProvider" in ort.get_available_providers() and Path("/dev/nvidiactl").exists():
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


@dataclass(frozen=True, kw_only=True)
class How:
    """How to load a graph."""

    threads: int
    """Of one inference."""
    callers: int = 1
    """Inferences at the same time."""
    providers: Sequence[str] | None = None
    """ONNX Runtime's execution providers; None: :func:`default_providers`."""


class _OnnxRuntime:
    name = REFERENCE

    def __init__(self, path: Path, card: Card, how: How) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = how.threads
        options.inter_op_num_threads = 1
        # Threads that wait for their part of an inference spin, which is up to twice as fast as sleeping; those of an
        # idle session must not burn the cores that decode the next image or run another model (by default for 30 ms).
        options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
        self._input, self._output = card.use.input.name, card.use.output.name
        try:
            providers = list(how.providers or default_providers())
            self._session = ort.InferenceSession(
                str(path), options, providers=providers, disabled_optimizers=list(DISABLED)
            )
        except Exception as error:  # ONNX Runtime's exceptions have no common public base class
            raise ArtefactError(f"{path}: ONNX Runtime {ort.__version__} cannot load it: {error}") from error
        self.on_gpu = bool(self._session.get_providers()[0] != "CPUExecutionProvider")

    def logits(self, images: Floats) -> Floats:
        (output,) = self._session.run([self._output], {self._input: images})
        return np.asarray(output, dtype=np.float32)


class _OpenVino:
    on_gpu = False

    def __init__(self, path: Path, card: Card, how: How, name: str, precision: str) -> None:
        self.name, self._path, self._shape = name, path, card.use.input.shape
        # A stream computes one inference at a time: without others, callers would wait for each other.
        streams = {"NUM_STREAMS": how.callers} if how.callers > 1 else {"PERFORMANCE_HINT": "LATENCY"}
        self._options = streams | {
            "INFERENCE_NUM_THREADS": how.threads * how.callers,
            "INFERENCE_PRECISION_HINT": precision,
            # Every process would pin its threads to the same first cores.
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled: dict[bool, Any] = {}
        self._compiling = threading.Lock()
        self._requests = threading.local()
        self._compile(single=True)

    def logits(self, images: Floats) -> Floats:
        single = len(images) == 1
        request = getattr(self._requests, f"single_{single}", None)
        if request is None:
            request = self._compile(single=single).create_infer_request()
            setattr(self._requests, f"single_{single}", request)
        # The caller's own array, which has to live until the end: calling the compiled model costs a quarter more.
        images = np.require(images, np.float32, ["C", "W"])
        request.set_input_tensor(_openvino().Tensor(images, shared_memory=True))
        request.infer()
        return np.array(request.get_output_tensor().data, dtype=np.float32)

    def _compile(self, *, single: bool) -> Any:
        """The graph for one image at a time, which is faster with a fixed shape, or for any number of them."""
        with self._compiling:
            if single not in self._compiled:
                openvino = _openvino()
                try:
                    network = _core().read_model(self._path)
                    network.reshape([1 if single else -1, *self._shape])
                    self._compiled[single] = _core().compile_model(network, "CPU", self._options)
                except Exception as error:  # RuntimeError of OpenVINO's C++, in many kinds
                    reason = " ".join(str(error).split())[-300:]
                    version = openvino.__version__.split("-")[0]
                    raise ArtefactError(f"{self._path}: OpenVINO {version} cannot load it: {reason}") from error
            return self._compiled[single]


@functools.cache
def _openvino() -> Any:
    # Parts of OpenVINO send usage data and write ~/intel, unless this package, which does it, cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


@functools.cache
def _core() -> Any:
    return _openvino().Core()


Load = Callable[[Path, Card, How], Engine]

ENGINES: dict[str, Load] = {
    REFERENCE: _OnnxRuntime,
    "openvino": lambda path, card, how: _OpenVino(path, card, how, "openvino", "f32"),
    "openvino-bf16": lambda path, card, how: _OpenVino(path, card, how, "openvino-bf16", "bf16"),
}
"""Name -> loads the graph of a file with a card; raises ArtefactError where the runtime cannot run it."""

OTHERS = tuple(name for name in ENGINES if name != REFERENCE)


def lacking(name: str) -> str:
    """Why an engine cannot run here, after its name; empty if it can."""
    if name == REFERENCE:
        return ""
    if importlib.util.find_spec("openvino") is None:
        return f"is not installed ({INSTALL})"
    if name == "openvino-bf16" and "BF16" not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return "needs a processor with bfloat16 instructions"
    return ""
