"""INT8 graphs mean one thing: ONNX Runtime and OpenVINO compute what their quantizers and dequantizers say.

What they say is what ONNX Runtime computes without optimizing the graph: everything in floats, node after node.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

from compress.quantize import quantizer
from compress.quantize.calibration import Batches
from compress.quantize.observe import logits, session
from compress.quantize.targets import TARGETS
from compress.quantize.variants import Variants
from tests.compress.graphs import exported
from tests.zoo.factories import make_input, make_samples
from zoo.training.recipe import QuantizeConfig

Floats = npt.NDArray[np.float32]

NETWORKS = ("cnn5", "resnet10t", "tf_efficientnet_lite0", "vit_tiny_patch16_224")


@pytest.fixture(scope="module")
def feeds() -> Batches:
    return Batches(make_samples(32), make_input(32, "L"))


def _quantized(name: str, folder: Path, feeds: Batches) -> ModelProto:
    config = QuantizeConfig()
    return Variants(onnx.load(str(exported(name, folder))), feeds, TARGETS["portable"], config).static()


def _exact(model: ModelProto, feeds: Batches) -> Floats:
    runner = session(model, exact=True)
    return np.concatenate([np.asarray(runner.run(None, dict(feed))[0], np.float32) for feed in feeds])


def _openvino(model: ModelProto, feeds: Batches) -> Floats:
    openvino: Any = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return np.concatenate([np.asarray(compiled(dict(feed))[0], np.float32) for feed in feeds])


@pytest.mark.parametrize("name", NETWORKS)
def test_both_engines_compute_what_the_graph_says(name: str, feeds: Batches, tmp_path: Path) -> None:
    done = _quantized(name, tmp_path, feeds)
    wanted = _exact(done, feeds)
    assert np.abs(logits(done, feeds) - wanted).mean() < 0.02 * min(1, np.abs(wanted).max())
    assert np.abs(_openvino(done, feeds) - wanted).mean() < 0.02 * min(1, np.abs(wanted).max())


def test_with_the_stem_in_int8_openvino_would_not(
    feeds: Batches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizer, "stems", lambda model: [])
    done = _quantized("vit_tiny_patch16_224", tmp_path, feeds)
    wanted = _exact(done, feeds)
    assert np.abs(logits(done, feeds) - wanted).mean() < 1e-4
    assert np.abs(_openvino(done, feeds) - wanted).mean() > 1e-3


def test_what_is_left_in_float_stays_in_float(feeds: Batches, tmp_path: Path) -> None:
    parent = onnx.load(str(exported("tf_efficientnet_lite0", tmp_path)))
    variants = Variants(parent, feeds, TARGETS["portable"], QuantizeConfig())
    depthwise = [node.name for node in variants.prepared.graph.node if _groups(node) > 1]
    assert len(depthwise) == 16
    done = variants.static(depthwise)
    wanted = _exact(done, feeds)
    limit = 0.02 * min(1, np.abs(wanted).max())
    assert np.abs(logits(done, feeds) - wanted).mean() < limit
    plain = ort.InferenceSession(done.SerializeToString(), providers=["CPUExecutionProvider"])
    coarse = np.concatenate([np.asarray(plain.run(None, dict(feed))[0], np.float32) for feed in feeds])
    assert np.abs(coarse - wanted).mean() > limit


def _groups(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
