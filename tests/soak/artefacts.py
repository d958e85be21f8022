"""Tiny artefacts for the soak, written without torch: a linear layer on the brightness of an 8 x 8 image."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from zoo.artefact.card import Build, Card, Inform, Input, LineageEntry, Resize, Use
from zoo.artefact.onnx_file import write
from zoo.artefact.predictor import Predictor, draw_golden
from zoo.artefact.preprocess import encode_png

__all__ = ["picture", "replace", "write_tiny"]

_LABELS = ("cat", "dog", "fox")


def picture(seed: int = 0) -> bytes:
    """A PNG file of 20 x 16 random pixels."""
    return encode_png(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8))


def write_tiny(path: Path, *, seed: int, liar: bool = False) -> Path:
    """Write an artefact; as a `liar`, one whose weights are not those of its golden answer."""
    card = Card(
        name=path.parent.name,
        build=Build(architecture="tiny"),
        use=Use(
            labels=_LABELS,
            input=Input(colour="RGB", size=(8, 8), resize=Resize(rule="stretch"), mean=(0.5,) * 3, std=(0.25,) * 3),
            temperature=8.0,
        ),
        inform=Inform(parameters=576, macs=576, bytes=0, metrics=()),
        lineage=(LineageEntry(stage="train", config={}, parent=None),),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    card = write(_model(seed), card, path)
    golden = draw_golden(Predictor(path, check=False, threads=1))
    if liar:
        golden = dataclasses.replace(golden, probabilities=tuple(reversed(golden.probabilities)))
    write(_model(seed), dataclasses.replace(card, use=dataclasses.replace(card.use, golden=golden)), path)
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
