"""Both engines on small graphs: names, threads, batches, and what is not there."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.zoo.factories import make_card, write_artefact
from zoo.artefact import onnx_file as graph
from zoo.artefact.engines import runtimes
from zoo.artefact.engines.runtimes import ENGINES, How, lacking, preference
from zoo.base.errors import ArtefactError, UsageError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_artefact(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def _load(name: str, path: Path, **how: int) -> runtimes.Engine:
    if name != "onnxruntime":
        pytest.importorskip("openvino")
    if reason := lacking(name):
        pytest.skip(reason)
    return ENGINES[name](path, graph.read_card(path), How(**{"threads": 1} | how))


def _images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 3, 32, 32), dtype=np.float32)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("count", [1, 2, 7])
def test_every_engine_multiplies_at_every_batch_size(path: Path, name: str, count: int) -> None:
    engine = _load(name, path)
    assert (engine.name, engine.on_gpu) == (name, False)
    images = _images(count)
    weight = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32) * 4
    expected = images.mean(axis=(2, 3)) @ weight
    found = engine.logits(images)
    assert (found.dtype, found.shape) == (np.float32, (count, 3))
    np.testing.assert_allclose(found, expected, atol=5e-3 if name.endswith("bf16") else 1e-5)
    np.testing.assert_array_equal(found, np.concatenate([engine.logits(image[None]) for image in images]))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("callers", [1, 3])
def test_threads_get_the_answers_to_their_own_images(path: Path, name: str, callers: int) -> None:
    engine = _load(name, path, callers=callers)
    groups = [_images(1 + seed % 3, seed) for seed in range(60)]
    expected = [engine.logits(images) for images in groups]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(engine.logits, groups))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    # An answer is not overwritten by the next one.
    assert len({answer.tobytes() for answer in found}) == 60


@pytest.mark.parametrize("name", ENGINES)
def test_what_is_not_contiguous_or_writable_is_computed_all_the_same(path: Path, name: str) -> None:
    engine, images = _load(name, path), _images(4)
    expected = engine.logits(images[::2].copy())
    images.flags.writeable = False
    np.testing.assert_array_equal(engine.logits(images[::2]), expected)
    np.testing.assert_array_equal(engine.logits(images[:1]), engine.logits(images[:1].copy()))


@pytest.mark.parametrize("name", ENGINES)
def test_a_file_that_an_engine_cannot_run_is_an_error_with_its_name(path: Path, name: str) -> None:
    _load(name, path)
    path.write_bytes(b"no graph")
    with pytest.raises(ArtefactError, match=r"model\.onnx: (ONNX Runtime|OpenVINO) [\d.]+ cannot load it"):
        ENGINES[name](path, make_card(), How(threads=1))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("auto", ()),
        ("", ()),
        (" , ", ()),
        ("openvino", ("openvino",)),
        ("openvino-bf16, openvino,openvino", ("openvino-bf16", "openvino")),
    ],
)
def test_preference(text: str, names: tuple[str, ...]) -> None:
    assert preference(text) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("openvno", r"unknown engine 'openvno'; did you mean openvino"),
        ("onnxruntime,onxruntime", r"unknown engine 'onxruntime'; did you mean onnxruntime\?"),
        ("auto,openvino", "name it alone"),
        ("openvino,auto", "name it alone"),
    ],
)
def test_what_no_engine_is_called(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        preference(text)


def test_what_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    assert lacking("onnxruntime") == ""
    for name in ("openvino", "openvino-bf16"):
        assert lacking(name) == "is not installed (pip install 'pocketzoo[openvino]')"


def test_bfloat16_needs_a_processor_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            return ["FP32", "INT8"]

    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(runtimes, "_core", Core)
    assert lacking("openvino-bf16") == "needs a processor with bfloat16 instructions"
    assert lacking("openvino") == ""


def test_openvino_is_loaded_where_it_computes_and_sends_nothing(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    code = f"""
import sys
from pathlib import Path
from zoo.artefact.predictor import Predictor
Predictor(Path({str(path)!r}), engine="onnxruntime")
assert "openvino" not in sys.modules
from zoo.artefact.engines.runtimes import ENGINES, How
from zoo.artefact.onnx_file import read_card
ENGINES["openvino"](Path({str(path)!r}), read_card(Path({str(path)!r})), How(threads=1))
assert "openvino" in sys.modules
assert sys.modules["openvino_telemetry"] is None
"""
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "PATH": "", "PYTHONPATH": str(Path(runtimes.__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(home.iterdir()) == []
