"""Each peer computes what the network computes; conversions, answers and times come from the process itself."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bench.runtimes import baselines as peer_runtimes
from bench.runtimes import measuring_process as peer_worker
from bench.runtimes.baselines import DEFAULTS, PEERS
from bench.runtimes.measuring_process import Job, answer, prepare, timed
from compress.export import export
from tests.bench.artefacts import TRAIN, write_checkpoint
from tests.zoo.factories import make_samples
from zoo.artefact.clock import alternate
from zoo.artefact.engines import choice
from zoo.artefact.preprocess import batch, golden_image
from zoo.base.errors import ArtefactError
from zoo.base.files import GRAPH
from zoo.base.machine import peak_bytes
from zoo.networks import checkpoint

SIZE, COUNT = 28, 10
INSTALLED = [name for name, peer in PEERS.items() if all(importlib.util.find_spec(need) for need in peer.needs)]
FLOAT = [name for name in INSTALLED if PEERS[name].precision == "float32" and name != "torch-compile"]
INT8 = [name for name in INSTALLED if PEERS[name].precision == "int8" and not PEERS[name].ours]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a measuring process sets for itself, and is told."""
    monkeypatch.setenv("POCKETZOO_STARTED", str(time.monotonic()))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LeNet, exported for real."""
    source = write_checkpoint(tmp_path_factory.mktemp("networks") / "lenet", (TRAIN,), size=SIZE)
    export(source, source.with_name(GRAPH))
    return source.parent


@pytest.fixture
def job(network: Path, tmp_path: Path) -> Job:
    for index, sample in enumerate(make_samples(COUNT, size=SIZE)):
        path = tmp_path / "pictures" / f"{index:02d}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(sample.read())
    (tmp_path / "scratch").mkdir()
    common = {"folder": str(network), "scratch": str(tmp_path / "scratch"), "pictures": str(tmp_path / "pictures")}
    return Job(action="", peer="torch", seconds=0.01, warmup=1, shape=(3, SIZE, SIZE), **common)


def expected(network: Path, images: list[bytes]) -> npt.NDArray[np.float32]:
    model, card = checkpoint.load(network / "model.safetensors")
    with torch.inference_mode():
        return model(torch.from_numpy(batch(images, card.use.input))).numpy()


def test_the_table_of_peers() -> None:
    assert len(FLOAT) >= 4
    assert set(DEFAULTS) == set(PEERS) - {"torch-compile", "ort-again", "pocketzoo", "pocketzoo-int8"}
    assert [name for name, peer in PEERS.items() if peer.ours] == ["pocketzoo", "pocketzoo-int8"]
    assert all(peer.convert for peer in PEERS.values() if peer.calibrated)


@pytest.mark.parametrize("peer", FLOAT)
def test_peers_in_float_answer_as_the_network(
    job: Job, peer: str, network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_worker, "_BATCH", 4)  # the last batch is smaller
    job = dataclasses.replace(job, peer=peer)
    found = prepare(job)
    wanted = expected(network, [golden_image(0)])[0]
    assert np.abs(np.array(found["logits"]) - wanted).max() <= 1e-4
    assert found["bytes"] > 70_000
    answers = np.load(answer(job)["answers"])
    wanted = expected(network, [sample.read() for sample in make_samples(COUNT, size=SIZE)])
    assert answers.shape == (COUNT, 3)
    assert np.abs(answers - wanted).max() <= 1e-4


@pytest.mark.parametrize("peer", INT8)
def test_peers_that_quantize_are_smaller_and_answer_nearly_so(job: Job, peer: str, network: Path) -> None:
    job = dataclasses.replace(job, peer=peer)
    found = prepare(job)
    wanted = expected(network, [golden_image(0)])[0]
    difference = np.abs(np.array(found["logits"]) - wanted).max()
    assert 0 < difference < 0.2 * np.ptp(wanted)
    assert found["bytes"] < 0.75 * (network / GRAPH).stat().st_size
    assert found["convert_seconds"] > 0
    assert np.load(answer(job)["answers"]).shape == (COUNT, 3)


@pytest.mark.parametrize("peer", ["torch-channels-last", "ort", "pocketzoo"])
def test_times(job: Job, peer: str) -> None:
    found = timed(dataclasses.replace(job, peer=peer, batch=2))
    assert len(found["samples_ms"]) >= 20
    assert min(found["samples_ms"]) > 0
    assert len(found["paced_ms"]) >= 20
    assert 0 < found["first_ms"] / 1000 < found["startup_seconds"]
    assert found["peak_mb"] > 20


def test_our_first_inference_is_the_first(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    checks: list[Path] = []
    monkeypatch.setattr(choice, "check_golden", lambda engine, card, path: checks.append(path))
    timed(dataclasses.replace(job, peer="pocketzoo"))
    assert not checks
    prepare(dataclasses.replace(job, peer="pocketzoo"))
    assert checks


def test_memory_and_start_are_those_of_the_process_and_what_it_needs(job: Job) -> None:
    ballast = np.ones(100_000_000, dtype=np.uint8)  # what started a process is not counted as its own
    job = dataclasses.replace(job, peer="ort", action="time")
    values = dataclasses.asdict(job)
    ((_, _, found),) = alternate({"one": ["-m", "bench.runtimes.measuring_process", json.dumps(values)]}, 1)
    assert 20 < found["peak_mb"] < peak_bytes() / 1e6 - ballast.nbytes / 2e6
    assert 0.01 < found["startup_seconds"] < 60
    script = "import sys, bench.runtimes.measuring_process; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "onnxruntime", "openvino", "PIL"} & set(modules)


def test_a_batch_is_answered_alike(job: Job) -> None:
    job = dataclasses.replace(job, peer="torch")
    assert prepare(dataclasses.replace(job, batch=3))["logits"] == pytest.approx(prepare(job)["logits"], abs=1e-6)


@pytest.mark.skipif("openvino" not in INSTALLED, reason="openvino is an extra")
def test_no_usage_data_is_sent() -> None:
    assert peer_runtimes._optional("openvino").__version__
    assert sys.modules["openvino_telemetry"] is None
    assert importlib.import_module("openvino.tools.ovc.telemetry_utils").tm.__name__.endswith("telemetry_stub")


def test_a_package_that_is_absent(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ArtefactError, match=r"openvino is not installed.*pip install '\.\[peers\]'"):
        prepare(dataclasses.replace(job, peer="openvino"))


def test_a_process_prints_its_answer_last(job: Job) -> None:
    values = dataclasses.asdict(dataclasses.replace(job, peer="ort-defaults-int8", action="prepare"))
    ((name, number, found),) = alternate({"one": ["-m", "bench.runtimes.measuring_process", json.dumps(values)]}, 1)
    assert (name, number) == ("one", 0)
    assert found["logits"] == pytest.approx(prepare(dataclasses.replace(job, peer="ort-defaults-int8"))["logits"])
