"""How long `bentoml serve` takes until it is ready, and until it has predicted, and what memory its processes take.

With one artefact and with many large ones, which are made here; each when nothing is known of the files yet (the first
start on a machine) and when they passed their check before.
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from bench.load.images import default_image
from bench.rows import stamp
from bench.serving.measure import alone
from bench.serving.server import Server, serving
from zoo.artefact.card import Build, Card, Inform, Input, LineageEntry, Resize, Use
from zoo.artefact.environment import environment_text
from zoo.artefact.onnx_file import read_card, write
from zoo.artefact.predictor import Predictor, draw_golden
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import GRAPH, sha256_file
from zoo.base.progress import note, track
from zoo.base.tables import markdown_table

__all__ = ["StartConfig", "markdown", "measure", "write_large"]

_TIMEOUT_SECONDS = 60.0
_LABELS = ("cat", "dog", "fox")
_SIDE = 32
_CONVOLUTIONS = 10


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """How to measure."""

    rounds: int = 3
    """Starts of each case."""
    many: int = 20
    """Large artefacts of the second case; 0: no such case."""
    megabytes: float = 100.0
    """Size of each, of 10^6 bytes."""

    def __post_init__(self) -> None:
        for name, low in (("rounds", 1), ("many", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"--{name} must be at least {low}, got {getattr(self, name)}")
        if self.megabytes <= 0:
            raise UsageError(f"--megabytes must be positive, got {self.megabytes:g}")


def measure(artefact: Path, config: StartConfig) -> list[dict[str, Any]]:
    """Start the server again and again: one complete row per case.

    Args:
        artefact: the ONNX file of the case with one model; it is copied into a folder of its own.
        config: how.

    Raises:
        PocketzooError: the server did not start, or did not predict.
    """
    common = stamp("bentoml")
    with alone(artefact) as models:
        rows = _starts(models, config.rounds)
    if config.many:
        with tempfile.TemporaryDirectory(prefix="pocketzoo-start-") as name:
            note(f"writing {config.many} artefacts of {config.megabytes:g} MB with random weights")
            write_large(Path(name), config.many, config.megabytes)
            rows += _starts(Path(name), config.rounds)
    return [row | common for row in rows]


def _starts(models: Path, rounds: int) -> list[dict[str, Any]]:
    files = sorted(models.glob("*/*.onnx"))
    common = {
        "artefact": files[0].parent.name,
        "file": files[0].name,
        "digest": sha256_file(files[0]),
        "graph": read_card(files[0]).inform.graph,
        "models": len(files),
        "bytes": sum(path.stat().st_size for path in files),
        "rounds": rounds,
    }
    rows = []
    with tempfile.TemporaryDirectory(prefix="pocketzoo-cache-") as name:
        for known in (False, True):
            # The starts that know the files take what the last of the others has noted.
            caches = [Path(name) / (f"{rounds - 1}" if known else f"{at}") for at in range(rounds)]
            found = [_start(models, cache) for cache in track(iter(caches), total=rounds, description="Starting")]
            rows.append(
                common
                | {
                    "known": known,
                    **{key: [each[key] for each in found] for key in ("ready_seconds", "predicted_seconds")},
                    **{key: found[-1][key] for key in ("worker_mb", "supervisor_mb")},
                    "load_average": round(os.getloadavg()[0], 2),
                }
            )
    return rows


def _start(models: Path, cache: Path) -> dict[str, Any]:
    """One start: seconds since the command, and memory after the first prediction."""
    image = default_image().read_bytes()
    begun = time.perf_counter()
    with serving(models, POCKETZOO_CACHE=str(cache)) as server:
        _predict(server, image)
        predicted = round(time.perf_counter() - begun, 3)
        return {"ready_seconds": server.ready_seconds, "predicted_seconds": predicted, **server.shared_memory_mb()}


def _predict(server: Server, image: bytes) -> None:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("POST", "/v1/predict", image)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ArtefactError(
                f"the first prediction: expected status 200, got {answer.status}: {answer.read()!r:.200}"
            )
    finally:
        connection.close()


def write_large(folder: Path, count: int, megabytes: float) -> None:
    """Write artefacts of random weights, which are the same, under names and with digests of their own.

    Args:
        folder: gets a folder for each, `large-01` and so on.
        count: how many.
        megabytes: of each, about; in 10^6 bytes.
    """
    spec = Input(colour="RGB", size=(_SIDE, _SIDE), resize=Resize(rule="stretch"), mean=(0.5,) * 3, std=(0.25,) * 3)
    model = _convolutions(round(math.sqrt(megabytes * 1e6 / (4 * 9 * _CONVOLUTIONS))))
    card = Card(
        name="large",
        build=Build(architecture="convolutions"),
        use=Use(labels=_LABELS, input=spec),
        inform=Inform(parameters=0, macs=0, bytes=0, source="random"),
        lineage=(LineageEntry(stage="train", config={}, parent=None),),
    )
    for number in range(1, count + 1):
        path = folder / f"large-{number:02}" / GRAPH
        path.parent.mkdir(parents=True)
        card = write(model, dataclasses.replace(card, name=path.parent.name), path)
        if number == 1:
            golden = draw_golden(Predictor(path, check=False))
            card = write(model, dataclasses.replace(card, use=dataclasses.replace(card.use, golden=golden)), path)


def _convolutions(channels: int) -> ModelProto:
    """A stack of convolutions of 3 x 3, on 8 x 8 positions."""
    rng = np.random.default_rng(0)
    shapes = [(channels, 3, 3, 3), *[(channels, channels, 3, 3)] * _CONVOLUTIONS]
    weights = [rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape).astype(np.float32) for shape in shapes]
    nodes, last = [], "image"
    for at in range(len(shapes)):
        strides = [4, 4] if at == 0 else [1, 1]
        options = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": strides}
        nodes += [helper.make_node("Conv", [last, f"w{at}"], [f"c{at}"], **options)]
        nodes += [helper.make_node("Relu", [f"c{at}"], [f"r{at}"])]
        last = f"r{at}"
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    head = rng.normal(0, 1, (channels, len(_LABELS))).astype(np.float32)
    stored = [numpy_helper.from_array(array, f"w{at}") for at, array in enumerate(weights)]
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, _SIDE, _SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(_LABELS)])],
        [*stored, numpy_helper.from_array(head, "head")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line per case: medians of the starts, and memory in MB after the first prediction."""
    memory = [f"{process} {kind}" for process in ("worker", "supervisor") for kind in ("RSS", "PSS", "USS")]
    heading = ["models", "MB", "<files", "starts", "ready s", "predicted s", *memory]
    cells = [
        [
            f"{row['models']}",
            f"{row['bytes'] / 1e6:.0f}",
            "checked before" if row["known"] else "new",
            f"{row['rounds']}",
            *(f"{statistics.median(row[key]):.2f}" for key in ("ready_seconds", "predicted_seconds")),
            *(f"{row[key][kind]:.0f}" for key in ("worker_mb", "supervisor_mb") for kind in ("rss", "pss", "uss")),
        ]
        for row in rows
    ]
    loads = sorted({row["load_average"] for row in rows})
    machine = f"{environment_text(rows[-1]['environment'])}; load average {loads[0]:.1f} to {loads[-1]:.1f}"
    return f"{markdown_table(heading, cells)}\n\n{machine}"
