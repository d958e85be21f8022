"""Tiny artefacts for the soak, written without torch: a linear layer on the brightness of an 8 x 8 image."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

from zoo.artefact.card import Build, Card, Inform, Input, LineageEntry, Resize, Use
from zoo.artefact.onnx_file import write
from zoo.artefact.predictor import Predictor, draw_golden
from zoo.artefact.preprocess import encode_png

__all__ = ["photograph", "picture", "replace", "write_tiny", "write_working"]

_LABELS = ("cat", "dog", "fox")


def picture(seed: int = 0) -> bytes:
    """A PNG file of 20 x 16 random pixels."""
    return encode_png(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8))


def write_tiny(path: Path, *, seed: int, liar: bool = False) -> Path:
    """Write an artefact; as a `liar`, one whose weights are not those of its golden answer."""
    return _write_checked(path, _model(seed), (8, 8), liar=liar)


def _write_checked(path: Path, model: ModelProto, size: tuple[int, int], *, liar: bool = False) -> Path:
    """Write an artefact with its golden answer, which is wrong for a `liar`; `size`: height and width of its input."""
    card = Card(
        name=path.parent.name,
        build=Build(architecture="tiny"),
        use=Use(
            labels=_LABELS,
            input=Input(colour="RGB", size=size, resize=Resize(rule="stretch"), mean=(0.5,) * 3, std=(0.25,) * 3),
            temperature=8.0,
        ),
        inform=Inform(parameters=576, macs=576, bytes=0, metrics=()),
        lineage=(LineageEntry(stage="train", config={}, parent=None),),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    card = write(model, card, path)
    golden = draw_golden(Predictor(path, check=False, threads=1))
    if liar:
        golden = dataclasses.replace(golden, probabilities=tuple(reversed(golden.probabilities)))
    write(model, dataclasses.replace(card, use=dataclasses.replace(card.use, golden=golden)), path)
    return path


def replace(path: Path, new: Path) -> None:
    """Put a copy of `new` in the place of `path`, at once."""
    temporary = path.with_name(f".{path.name}.soak")
    temporary.write_bytes(new.read_bytes())
    temporary.replace(path)


def _model(seed: int) -> ModelProto:
    weights = np.random.default_rng(seed).normal(size=(192, len(_LABELS))).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(_LABELS)])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def photograph() -> bytes:
    """A JPEG file of 640 x 427 pixels, as large as one of a photograph."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (54, 80, 3), dtype=np.uint8)).resize((640, 427))
    noisy = np.asarray(smooth, dtype=np.int16) + rng.integers(-20, 21, (427, 640, 3))
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_working(path: Path) -> Path:
    """Write an artefact whose convolutions take some milliseconds: 3 x 112 x 112 pixels, 64 channels."""
    rng = np.random.default_rng(0)
    shapes = {"a": (64, 3, 3, 3), "b": (64, 64, 3, 3), "c": (64, 64, 3, 3), "d": (64, len(_LABELS))}
    stored = [
        numpy_helper.from_array((rng.normal(size=s) / math.prod(s[1:]) ** 0.5).astype(np.float32), name)
        for name, s in shapes.items()
    ]
    options = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["1"], strides=[2, 2], **options),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], **options),
        helper.make_node("Relu", ["3"], ["4"]),
        helper.make_node("Conv", ["4", "c"], ["5"], **options),
        helper.make_node("GlobalAveragePool", ["5"], ["6"]),
        helper.make_node("Flatten", ["6"], ["7"]),
        helper.make_node("MatMul", ["7", "d"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "working",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 112, 112])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(_LABELS)])],
        stored,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return _write_checked(path, model, (112, 112))
