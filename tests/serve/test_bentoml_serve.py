"""`bentoml serve` as a user starts it: in the repository's root, without arguments of ours."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from tests.serve.conftest import BENTOML_WARNINGS
from zoo.artefact.predictor import Predictor

pytestmark = BENTOML_WARNINGS

ROOT = Path(__file__).resolve().parents[2]
BENTOML = Path(sys.executable).with_name("bentoml")


def _environment(output: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("POCKETZOO_", "BENTOML_"))}
    return kept | {"POCKETZOO_OUTPUT": str(output)} | more


def _wait_until_ready(process: subprocess.Popen, url: str, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"not ready in a minute:\n{log.read_text()}")


@pytest.fixture(scope="module")
def server(output, tmp_path_factory):
    """A running server: its process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [BENTOML, "serve", "--port", str(port)],
            cwd=ROOT,
            env=_environment(output),
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(process, f"http://127.0.0.1:{port}", log)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def _worker(process: subprocess.Popen) -> psutil.Process:
    (worker,) = [child for child in psutil.Process(process.pid).children(True) if "--worker-id" in child.cmdline()]
    return worker


def test_bentoml_s_clients_see_that_it_is_ready(server):
    import bentoml

    async def ready(url: str) -> bool:
        async with bentoml.AsyncHTTPClient(url, server_ready_timeout=5) as client:
            return await client.is_ready()

    _, url = server
    with bentoml.SyncHTTPClient(url, server_ready_timeout=5) as client:
        assert client.is_ready()
    assert asyncio.run(ready(url))


def test_the_server_answers_like_the_predictor_and_ends_cleanly(server, output, draw, tmp_path):
    import bentoml

    process, url = server
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        path.write_bytes(draw(seed))
    for model, file in ((None, "good/model.onnx"), ("other-int8", "other/model.int8.onnx")):
        expected = Predictor(output / file).predict([path.read_bytes() for path in paths])
        with bentoml.SyncHTTPClient(url) as client:
            answer = client.predict(images=paths, model=model)
        for found, wanted in zip(answer["predictions"], expected, strict=True):
            assert tuple(entry["label"] for entry in found["probabilities"]) == wanted.labels
            probabilities = [entry["probability"] for entry in found["probabilities"]]
            assert probabilities == pytest.approx(wanted.probabilities, abs=1e-4)

    worker = _worker(process)
    assert worker.memory_info().rss < 400e6
    loaded = "\n".join(region.path for region in worker.memory_maps())
    assert "/uvloop/" in loaded
    assert "/httptools/" in loaded
    assert "/torch/" not in loaded

    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not worker.is_running()


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"POCKETZOO_OUTPUT": "/nowhere"}, "`make train compress export` writes them"),
        ({"POCKETZOO_DEFAULT_MODEL": "liar"}, "golden self-check failed"),
        ({"POCKETZOO_KEYS_FILE": "/nowhere/keys.toml"}, "/nowhere/keys.toml"),
        ({"POCKETZOO_QUEUE": "abc"}, "POCKETZOO_QUEUE: expected `int`, got 'abc'"),
    ],
)
def test_a_server_that_could_never_answer_does_not_start(output, variables, sentence):
    done = subprocess.run(
        [BENTOML, "serve"],
        cwd=ROOT,
        env=_environment(output, **variables),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


_IN_PROCESS = """
import io, sys
from PIL import Image
from starlette.testclient import TestClient
from serve.service import Classifier
from bentoml._internal.utils.analytics.usage_stats import do_not_track
stream = io.BytesIO()
Image.new("RGB", (9, 9)).save(stream, "PNG")
with TestClient(Classifier.to_asgi()) as client:
    assert client.post("/predict", files={"images": stream.getvalue()}).status_code == 200
    assert client.get("/models").status_code == 200
heavy = {"torch", "torchvision", "onnx", "timm", "pandas", "matplotlib", "scipy", "sklearn"} & set(sys.modules)
assert not heavy, heavy
assert do_not_track()
"""


def test_answering_takes_no_heavy_package_and_sends_no_telemetry(output):
    environment = _environment(output, PYTHONPATH=str(ROOT))
    subprocess.run([sys.executable, "-c", _IN_PROCESS], env=environment, check=True, timeout=60)


_SUPERVISOR = """
import sys
import serve.service, serve.access.keys, serve.models.repository
heavy = {"numpy", "PIL", "onnx", "onnxruntime", "openvino"} & set(sys.modules)
assert not heavy, heavy
"""


def test_what_starts_the_workers_has_no_engine():
    subprocess.run(
        [sys.executable, "-c", _SUPERVISOR], env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, timeout=60
    )
