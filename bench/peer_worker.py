"""One process of a comparison: convert a network for a peer, answer pictures with it, or time it.

Run by bench.peers as `python -m bench.peer_worker JOB`, where JOB is a :class:`Job` as JSON; prints one JSON object.
`B` images, `K` labels.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zoo.clock import sample_ms
from zoo.errors import ArtefactError
from zoo.files import CHECKPOINT, GRAPH, INT8_GRAPH
from zoo.graph import load, read_card, strip_traces
from zoo.image import batch, golden_image, preprocess
from zoo.predictor import Predictor

__all__ = ["DEFAULTS", "INSTALL", "PEERS", "Job", "Peer", "answer", "prepare", "timed"]

INSTALL = "pip install '.[peers]'"

Inputs = npt.NDArray[np.float32]
Classifier = Callable[[Inputs], Inputs]

_BATCH = 32
_CPU = ("CPUExecutionProvider",)


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process does."""

    action: str
    """`prepare`, `answer` or `time`."""
    peer: str
    folder: str
    """The artefact's."""
    scratch: str
    """Folder for the converted network and the answers."""
    pictures: str = ""
    """Folder of image files in the order of their names: those to calibrate with, or to answer."""
    batch: int = 1
    threads: int = 1
    seconds: float = 0.3
    warmup: int = 20


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way of running a network."""

    load: Callable[[Path, int, tuple[int, ...] | None], Classifier]
    """From a file, a number of threads and the input's shape (None: batches of any size), to what answers."""
    convert: Callable[[Path, Sequence[Inputs], Path], Path] | None = None
    """From the artefact's file and calibration images [1, C, H, W], writes into a folder what `load` reads."""
    reads: str = GRAPH
    """File of the artefact's folder that this is made from."""
    precision: str = "float32"
    needs: tuple[str, ...] = ()
    """Optional packages."""
    calibrated: bool = False
    ours: bool = False


def prepare(job: Job) -> dict[str, Any]:
    """Convert and load a network once.

    Returns:
        `convert_seconds`, `setup_seconds` (until the first answer), `bytes` of what is loaded, and its `logits` for a
        picture that is the same for all peers.
    """
    peer, spec = PEERS[job.peer], read_card(Path(job.folder) / GRAPH).use.input
    begin = time.perf_counter()
    file = _file(job)
    if peer.convert is not None:
        images = [preprocess(path.read_bytes(), spec)[None] for path in _pictures(job)] if peer.calibrated else []
        begin = time.perf_counter()
        with _quiet():
            written = peer.convert(Path(job.folder) / peer.reads, images, file.parent)
        assert written == file
    converted = time.perf_counter()
    inputs = np.repeat(preprocess(golden_image(0), spec)[None], job.batch, axis=0)
    with _quiet():
        logits = peer.load(file, job.threads, inputs.shape)(inputs)
    # OpenVINO keeps its weights in a file beside the graph.
    parts = file.parent.glob(f"{file.stem}.*") if peer.convert else [file]
    return {
        "convert_seconds": round(converted - begin, 3),
        "setup_seconds": round(time.perf_counter() - converted, 3),
        "bytes": sum(path.stat().st_size for path in parts),
        "logits": logits[0].astype(float).tolist(),
    }


def answer(job: Job) -> dict[str, Any]:
    """Answer all pictures; the logits float32 [N, K] are saved as the file `answers` (NumPy's format)."""
    spec = read_card(Path(job.folder) / GRAPH).use.input
    pictures = _pictures(job)
    with _quiet():
        classify = PEERS[job.peer].load(_file(job), job.threads, None)
        parts = [
            classify(batch([path.read_bytes() for path in pictures[start : start + _BATCH]], spec))
            for start in range(0, len(pictures), _BATCH)
        ]
    target = Path(job.scratch) / f"{job.peer}.npy"
    np.save(target, np.concatenate(parts))
    return {"answers": str(target)}


def timed(job: Job) -> dict[str, Any]:
    """Time inferences of random inputs float32 [batch, C, H, W]: `samples_ms`."""
    shape = (job.batch, *read_card(Path(job.folder) / GRAPH).use.input.shape)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with _quiet():
        classify = PEERS[job.peer].load(_file(job), job.threads, shape)
        samples = sample_ms(lambda: classify(images), seconds=job.seconds, warmup=job.warmup)
    return {"samples_ms": [round(sample, 5) for sample in samples]}


def _file(job: Job) -> Path:
    peer = PEERS[job.peer]
    if peer.convert is None:
        return Path(job.folder) / peer.reads
    suffix = ".xml" if "openvino" in peer.needs else ".onnx"
    return Path(job.scratch) / job.peer / f"model{suffix}"


def _pictures(job: Job) -> list[Path]:
    return sorted(Path(job.pictures).iterdir())


def _torch(
    path: Path, threads: int, shape: tuple[int, ...] | None, *, channels_last: bool = False, compiled: bool = False
) -> Classifier:
    import torch

    from zoo.checkpoint import load as load_checkpoint

    torch.set_num_threads(threads)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model: Any = load_checkpoint(path)[0].to(memory_format=memory_format)
    if compiled:
        model = torch.compile(model, options={"freezing": True})

    def classify(images: Inputs) -> Inputs:
        # Inductor's freezing wants no_grad; for eager, both modes are as fast on a whole network.
        with torch.no_grad() if compiled else torch.inference_mode():
            return np.asarray(model(torch.from_numpy(images).contiguous(memory_format=memory_format)).numpy())

    return classify


def _ort(path: Path, threads: int, shape: tuple[int, ...] | None) -> Classifier:
    """A plain session, as its documentation has it: all optimizations, threads that spin."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=list(_CPU))
    name = session.get_inputs()[0].name
    return lambda images: np.asarray(session.run(None, {name: images})[0], dtype=np.float32)


def _predictor(path: Path, threads: int, shape: tuple[int, ...] | None) -> Classifier:
    return Predictor(path, threads=threads, providers=_CPU).logits


def _openvino(path: Path, threads: int, shape: tuple[int, ...] | None, *, full: bool = True) -> Classifier:
    openvino = _optional("openvino")
    core = openvino.Core()
    network = core.read_model(str(path))
    if shape is not None:
        # A fixed shape is the faster way, and the one its documentation recommends.
        network.reshape(list(shape))
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if full:
        # Processors with bfloat16 instructions would compute in that.
        options["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(network, "CPU", options)
    return lambda images: np.array(compiled(images)[0], dtype=np.float32)


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard output is for the answer alone; libraries that talk there are sent elsewhere, and may warn unheard."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


PEERS: dict[str, Peer] = {
    "torch": Peer(load=_torch, reads=CHECKPOINT),
    "torch-channels-last": Peer(
        load=lambda path, threads, shape: _torch(path, threads, shape, channels_last=True), reads=CHECKPOINT
    ),
    "torch-compile": Peer(
        load=lambda path, threads, shape: _torch(path, threads, shape, compiled=True), reads=CHECKPOINT
    ),
    "ort": Peer(load=_ort),
    "ort-defaults-int8": Peer(load=_ort, convert=_to_ort_int8, precision="int8", calibrated=True),
    "openvino": Peer(load=_openvino, convert=_to_openvino, needs=("openvino",)),
    "openvino-int8": Peer(
        load=lambda path, threads, shape: _openvino(path, threads, shape, full=False),
        convert=_to_nncf,
        precision="int8",
        needs=("openvino", "nncf"),
        calibrated=True,
    ),
    "pocketzoo": Peer(load=_predictor, ours=True),
    "pocketzoo-int8": Peer(load=_predictor, reads=INT8_GRAPH, precision="int8", ours=True),
}
"""Name -> how it is run. Those of ours are always measured, where the artefact has the file."""

DEFAULTS = tuple(name for name, peer in PEERS.items() if not peer.ours and name != "torch-compile")
"""All but the one that takes half a minute to compile each network."""


if __name__ == "__main__":
    job_ = Job(**json.loads(sys.argv[1]))
    print(json.dumps({"prepare": prepare, "answer": answer, "time": timed}[job_.action](job_)))
