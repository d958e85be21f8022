"""One process of a comparison: convert a network for a peer, answer images with it, or time it.

Run by bench.runtimes.compare as `python -m bench.runtimes.measuring_process JOB`, where JOB is a :class:`Job` as JSON;
prints one JSON object. `B` images, `K` labels.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.runtimes.baselines import PEERS
from zoo.artefact.clock import sample_ms, since_start
from zoo.base.files import GRAPH
from zoo.base.machine import peak_bytes

__all__ = ["PACE_SECONDS", "Job", "answer", "prepare", "timed"]

_BATCH = 32
PACE_SECONDS = 0.005
"""Long enough for threads to fall asleep and caches to be used by others."""


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
    shape: Sequence[int] = ()
    """Of one input: [C, H, W]."""


def prepare(job: Job) -> dict[str, Any]:
    """Convert and load a network once.

    Returns:
        `convert_seconds`, `setup_seconds` (until the first answer), `bytes` of what is loaded, its `logits` for an
        image that is the same for all peers, and the `engine` and precision (`hint`) that computed them.
    """
    from zoo.artefact.onnx_file import read_card
    from zoo.artefact.preprocess import golden_image, preprocess

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
        loaded = peer.load(file, job.threads, inputs.shape)
        logits = loaded.classify(inputs)
    ended = time.perf_counter()
    if peer.ours:
        # The golden self-check and the choice of an engine once, as what is timed goes without.
        from zoo.artefact.predictor import Predictor

        Predictor(file)
    # OpenVINO keeps its weights in a file beside the graph.
    parts = file.parent.glob(f"{file.stem}.*") if peer.convert else [file]
    return {
        "convert_seconds": round(converted - begin, 3),
        "setup_seconds": round(ended - converted, 3),
        "bytes": sum(path.stat().st_size for path in parts),
        "logits": logits[0].astype(float).tolist(),
        "engine": loaded.engine,
        "hint": loaded.hint,
    }


def answer(job: Job) -> dict[str, Any]:
    """Answer all images; the logits float32 [N, K] are saved as the file `answers` (NumPy's format)."""
    from zoo.artefact.onnx_file import read_card
    from zoo.artefact.preprocess import batch

    spec = read_card(Path(job.folder) / GRAPH).use.input
    pictures = _pictures(job)
    with _quiet():
        classify = PEERS[job.peer].load(_file(job), job.threads, None).classify
        parts = [
            classify(batch([path.read_bytes() for path in pictures[start : start + _BATCH]], spec))
            for start in range(0, len(pictures), _BATCH)
        ]
    target = Path(job.scratch) / f"{job.peer}.npy"
    np.save(target, np.concatenate(parts))
    return {"answers": str(target)}


def timed(job: Job) -> dict[str, Any]:
    """Time inferences of random inputs float32 [batch, C, H, W] in a process that does nothing else.

    Nothing is imported but NumPy and what the peer needs: both count for the start and the memory.

    Returns:
        `startup_seconds` from the start of the process to its first answer, `first_ms` of that inference alone,
        `samples_ms` of those after the warm-up, one upon another, `paced_ms` of others that come PACE_SECONDS after the
        last answer, as requests do, and `peak_mb`, the most memory so far in 10^6 bytes.
    """
    shape = (job.batch, *job.shape)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with _quiet():
        classify = PEERS[job.peer].load(_file(job), job.threads, shape).classify
        begin = time.perf_counter()
        classify(images)
        first, started = time.perf_counter() - begin, since_start()
        samples = sample_ms(lambda: classify(images), seconds=job.seconds, warmup=job.warmup)
        paced = sample_ms(lambda: classify(images), seconds=job.seconds, warmup=0, pause=PACE_SECONDS)
    return {
        "startup_seconds": round(started, 4),
        "first_ms": round(1000 * first, 4),
        "samples_ms": [round(sample, 5) for sample in samples],
        "paced_ms": [round(sample, 5) for sample in paced],
        "peak_mb": round(peak_bytes() / 1e6, 2),
    }


def _file(job: Job) -> Path:
    peer = PEERS[job.peer]
    if peer.convert is None:
        return Path(job.folder) / peer.reads
    suffix = ".xml" if "openvino" in peer.needs else ".onnx"
    return Path(job.scratch) / job.peer / f"model{suffix}"


def _pictures(job: Job) -> list[Path]:
    return sorted(Path(job.pictures).iterdir())


@contextmanager
def _quiet() -> Iterator[None]:
    """Standard output is for the answer alone; libraries that talk there are sent elsewhere, and may warn unheard."""
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    job_ = Job(**json.loads(sys.argv[1]))
    # What this comparison compiled is found again by its next process, what an earlier one compiled is not.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(job_.scratch) / "inductor")
    print(json.dumps({"prepare": prepare, "answer": answer, "time": timed}[job_.action](job_)))
