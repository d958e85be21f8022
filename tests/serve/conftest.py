"""Tiny ONNX artefacts, written without torch: a linear layer on an 8 x 8 image of its brightness."""

import dataclasses
import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from zoo.artefact.card import Build, Card, Inform, Input, LineageEntry, Metrics, Resize, Use
from zoo.artefact.onnx_file import write
from zoo.artefact.predictor import Predictor, draw_golden
from zoo.artefact.preprocess import encode_png

# What BentoML 1.4.39 warns of when it is imported and called, and what it (temporary folders of its clients) and
# Starlette 1.10 (the file of a form that ends in the middle) leave to the garbage collector.
BENTOML_WARNINGS = [
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `__get_pydantic_core_schema__` method:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute on the instance:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up .*bentoml-client:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Unclosed file .*SpooledTemporaryFile:ResourceWarning"),
]

LABELS = ("cat", "dog", "fox")


def _model(seed: int):
    weights = np.random.default_rng(seed).normal(size=(192, len(LABELS))).astype(np.float32)
    return helper.make_model(
        helper.make_graph(
            [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
            "tiny",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
            [numpy_helper.from_array(weights, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=10,
    )


def write_artefact(path: Path, *, seed: int = 0, top1: float | None = None, spoil_golden: bool = False) -> Path:
    """Write an artefact to `path`, measured as `top1`, whose self-check fails if `spoil_golden`."""
    spec = Input(colour="RGB", size=(8, 8), resize=Resize(rule="stretch"), mean=(0.5,) * 3, std=(0.25,) * 3)
    metrics = () if top1 is None else (Metrics(dataset="d", split="validation", n=9, top1=top1, low=0.0, high=1.0),)
    card = Card(
        name=path.parent.name,
        build=Build(architecture="tiny"),
        use=Use(labels=LABELS, input=spec, temperature=8.0),
        inform=Inform(parameters=576, macs=576, bytes=0, metrics=metrics),
        lineage=(LineageEntry(stage="train", config={}, parent=None),),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    card = write(_model(seed), card, path)
    golden = draw_golden(Predictor(path, check=False, threads=1))
    if spoil_golden:
        golden = dataclasses.replace(golden, probabilities=tuple(reversed(golden.probabilities)))
    write(_model(seed), dataclasses.replace(card, use=dataclasses.replace(card.use, golden=golden)), path)
    return path


def change_a_weight(path: Path) -> Path:
    """Change the last bits of one weight of a file, by less than any self-check can see."""
    model = onnx.load_model(path)
    stored = model.graph.initializer[0]
    weights = numpy_helper.to_array(stored).copy()
    weights.flat[7] = np.nextafter(weights.flat[7], np.float32(9))
    stored.CopyFrom(numpy_helper.from_array(weights, stored.name))
    onnx.save_model(model, path)
    return path


@pytest.fixture(scope="module", autouse=True)
def collect_garbage():
    """Let what a module leaves behind be collected while its filters of warnings still hold."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def output(tmp_path_factory) -> Path:
    """`good` is the best model, `other` has two files, `liar` fails its self-check, `torn` is torn."""
    root = tmp_path_factory.mktemp("output")
    write_artefact(root / "good" / "model.onnx", seed=1, top1=0.9)
    write_artefact(root / "other" / "model.onnx", seed=2, top1=0.5)
    write_artefact(root / "other" / "model.int8.onnx", seed=3)
    write_artefact(root / "liar" / "model.onnx", seed=4, top1=0.99, spoil_golden=True)
    (root / "torn").mkdir()
    (root / "torn" / "model.onnx").write_bytes((root / "good" / "model.onnx").read_bytes()[:700])
    write_artefact(root / ".hidden" / "model.onnx", seed=5, top1=1.0)
    (root / "checkpoint-only").mkdir()
    (root / "README.md").write_text("not a folder")
    return root


@pytest.fixture(scope="session")
def draw() -> Callable[[int], bytes]:
    """draw(seed): a PNG file of 20 x 16 random pixels."""
    return lambda seed: encode_png(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8))
