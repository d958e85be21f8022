"""The ways of running a network that a comparison knows: torch, ONNX Runtime, OpenVINO, and ours.

Every runtime is imported by what uses it, so that a measuring process holds no other one's memory and waits for none.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH

__all__ = ["AGAIN", "DEFAULTS", "INSTALL", "PEERS", "REFERENCE", "Inputs", "Loaded", "Peer"]

INSTALL = "pip install '.[peers]'"

REFERENCE = "ort"
"""ONNX Runtime with its defaults: needs no extra, so that it is always measured, and ratios are to it."""

AGAIN = "ort-again"
"""The same file in the same runtime once more: what its ratio is away from one is the noise of all others."""

Inputs = npt.NDArray[np.float32]

_CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A network that is ready to answer."""

    classify: Callable[[Inputs], Inputs]
    """From float32 [B, C, H, W] to logits [B, K]."""
    engine: str
    hint: str = "f32"
    """What it computes in where the graph says float32: f32 or bf16."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way of running a network."""

    load: Callable[[Path, int, tuple[int, ...] | None], Loaded]
    """From a file, a number of threads and the input's shape (None: batches of any size), to what answers."""
    convert: Callable[[Path, Sequence[Inputs], Path], Path] | None = None
    """From the artefact's file and calibration images [1, C, H, W], writes into a folder what `load` reads."""
    reads: str = GRAPH
    """File of the artefact's folder that this is made from."""
    precision: str = "float32"
    needs: tuple[str, ...] = ()
    """Optional packages."""
    obstacle: Callable[[], str] = lambda: ""
    """Why this machine cannot run it though the packages are there; empty: it can."""
    calibrated: bool = False
    ours: bool = False


def _torch(
    path: Path, threads: int, shape: tuple[int, ...] | None, *, channels_last: bool = False, compiled: bool = False
) -> Loaded:
    import torch

    from zoo.networks.checkpoint import load as load_checkpoint

    torch.set_num_threads(threads)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = load_checkpoint(path)[0].to(memory_format=memory_format)
    if compiled:
        model = torch.compile(model, options={"freezing": True})

    def classify(images: Inputs) -> Inputs:
        # Inductor's freezing wants no_grad; for eager, both modes are as fast on a whole network.
        with torch.no_grad() if compiled else torch.inference_mode():
            return np.asarray(model(torch.from_numpy(images).contiguous(memory_format=memory_format)).numpy())

    return Loaded(classify=classify, engine="torch")


def _ort(path: Path, threads: int, shape: tuple[int, ...] | None) -> Loaded:
    """A plain session, as its documentation has it: all optimizations, threads that spin."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=list(_CPU))
    name = session.get_inputs()[0].name
    return Loaded(
        classify=lambda images: np.asarray(session.run(None, {name: images})[0], dtype=np.float32),
        engine="onnxruntime",
    )


def _predictor(path: Path, threads: int, shape: tuple[int, ...] | None) -> Loaded:
    from zoo.artefact.predictor import Predictor, default_providers

    # Everything here runs on the processor. Where nothing else could, the engine is chosen as it is for a server.
    providers = None if tuple(default_providers()) == _CPU else _CPU
    # The golden check infers, which would count for the start and make the first inference a second one.
    predictor = Predictor(path, threads=threads, check=False, providers=providers)
    name, _, precision = predictor.engine.partition("-")
    return Loaded(classify=predictor.logits, engine=name, hint=precision or "f32")


def _openvino(path: Path, threads: int, shape: tuple[int, ...] | None, *, hint: str | None = "f32") -> Loaded:
    openvino = _optional("openvino")
    core = openvino.Core()
    network = core.read_model(str(path))
    if shape is not None:
        # A fixed shape is the faster way, and the one its documentation recommends.
        network.reshape(list(shape))
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if hint is not None:
        # Processors with bfloat16 instructions compute in that unless they are told otherwise.
        options["INFERENCE_PRECISION_HINT"] = hint
    compiled = core.compile_model(network, "CPU", options)
    # One request on the caller's own array: on tiny networks, calling the compiled model costs a quarter more.
    request = compiled.create_infer_request()

    def classify(images: Inputs) -> Inputs:
        request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
        request.infer()
        return np.array(request.get_output_tensor().data, dtype=np.float32)

    used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    return Loaded(classify=classify, engine="openvino", hint=used)


def _no_bfloat16() -> str:
    found = _optional("openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "" if "BF16" in found else "this processor has no bfloat16 instructions"


def _to_openvino(source: Path, images: Sequence[Inputs], folder: Path) -> Path:
    """OpenVINO's own format, in float32."""
    openvino = _optional("openvino")
    return _save_openvino(openvino.Core().read_model(str(source)), folder)


def _to_nncf(source: Path, images: Sequence[Inputs], folder: Path) -> Path:
    """INT8 as NNCF makes it by default, the calibration images aside."""
    openvino, nncf = _optional("openvino"), _optional("nncf")
    nncf.set_log_level(logging.ERROR)
    network = openvino.Core().read_model(str(source))
    return _save_openvino(nncf.quantize(network, nncf.Dataset(list(images))), folder)


def _save_openvino(network: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "model.xml"
    _optional("openvino").save_model(network, str(target), compress_to_fp16=False)
    return target


def _to_ort_int8(source: Path, images: Sequence[Inputs], folder: Path) -> Path:
    """INT8 as ONNX Runtime's quantize_static makes it by default, after the preparation that it asks for."""
    import onnx
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from zoo.artefact.onnx_file import load, strip_traces

    folder.mkdir(parents=True, exist_ok=True)
    model, card = load(source)
    parent, prepared, target = (folder / name for name in ("parent.onnx", "prepared.onnx", "model.onnx"))
    onnx.save(strip_traces(model), str(parent))
    quant_pre_process(str(parent), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(target), _Feeds(card.use.input.name, images))
    return target


class _Feeds:
    """Calibration images in the way that ONNX Runtime asks for them."""

    def __init__(self, name: str, images: Sequence[Inputs]) -> None:
        self._feeds: Iterator[dict[str, Inputs]] = ({name: image} for image in images)

    def get_next(self) -> dict[str, Inputs] | None:
        """The next input, or None at the end."""
        return next(self._feeds, None)


def _optional(name: str) -> Any:
    """A package that few need, with its telemetry off.

    Raises:
        ArtefactError: it is not installed.
    """
    # OpenVINO and NNCF send usage data on import unless this package, which does it for both, cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ArtefactError(f"{error.name} is not installed, so it cannot be compared with; {INSTALL}") from error


PEERS: dict[str, Peer] = {
    "torch": Peer(load=_torch, reads=CHECKPOINT),
    "torch-channels-last": Peer(
        load=lambda path, threads, shape: _torch(path, threads, shape, channels_last=True), reads=CHECKPOINT
    ),
    "torch-compile": Peer(
        load=lambda path, threads, shape: _torch(path, threads, shape, compiled=True), reads=CHECKPOINT
    ),
    "ort": Peer(load=_ort),
    AGAIN: Peer(load=_ort),
    "ort-defaults-int8": Peer(load=_ort, convert=_to_ort_int8, precision="int8", calibrated=True),
    "openvino": Peer(load=_openvino, convert=_to_openvino, needs=("openvino",)),
    "openvino-bf16": Peer(
        load=lambda path, threads, shape: _openvino(path, threads, shape, hint="bf16"),
        convert=_to_openvino,
        precision="bfloat16",
        needs=("openvino",),
        obstacle=_no_bfloat16,
    ),
    "openvino-int8": Peer(
        load=lambda path, threads, shape: _openvino(path, threads, shape, hint=None),
        convert=_to_nncf,
        precision="int8",
        needs=("openvino", "nncf"),
        calibrated=True,
    ),
    "pocketzoo": Peer(load=_predictor, ours=True),
    "pocketzoo-int8": Peer(load=_predictor, reads=INT8_GRAPH, precision="int8", ours=True),
}
"""Name -> how it is run. Those of ours are always measured, where the artefact has the file."""

DEFAULTS = tuple(name for name, peer in PEERS.items() if not peer.ours and name not in (AGAIN, "torch-compile"))
"""All but the one that takes half a minute to compile each network, and the one that is always there."""
