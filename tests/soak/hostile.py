"""Artefacts whose graphs harm whoever runs them: without an end, or without a limit of memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.soak.artefacts import write_tiny
from zoo.artefact.card import Golden
from zoo.artefact.onnx_file import load, write
from zoo.artefact.preprocess import GOLDEN_RULE

__all__ = ["write_endless", "write_huge"]

_GOLDEN = Golden(rule=GOLDEN_RULE, seed=0, probabilities=(0.5, 0.3, 0.2))


def write_endless(path: Path) -> Path:
    """An artefact whose graph goes round 2^60 times before it answers."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["more"]), helper.make_node("Cos", ["x"], ["y"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go_on", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
        [value("more", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)],
    )
    loop = helper.make_node("Loop", ["times", "yes", "start"], ["logits"], body=body)
    stored = {"times": np.array(2**60), "yes": np.array(True)}
    return _write(path, [loop], stored)


def write_huge(path: Path, *, gigabytes: int = 1000) -> Path:
    """An artefact whose graph fills so much memory."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["filled"]),
        helper.make_node("Cos", ["filled"], ["cosines"]),
        helper.make_node("ReduceMax", ["cosines"], ["one"], keepdims=0),
        helper.make_node("Mul", ["start", "one"], ["logits"]),
    ]
    return _write(path, nodes, {"shape": np.array([gigabytes * 1024, 1 << 18])})


def _write(path: Path, nodes: list[object], stored: dict[str, np.ndarray]) -> Path:
    """An artefact of `nodes` between `start` [B, 3], which depends on the image, and `logits` [B, 3]."""
    _, card = load(write_tiny(path, seed=0))
    first = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["start"])]
    graph = helper.make_graph(
        [*first, *nodes],
        "hostile",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(array, name)
            for name, array in {"w": np.zeros((192, 3), np.float32), **stored}.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    write(model, dataclasses.replace(card, use=dataclasses.replace(card.use, golden=_GOLDEN)), path)
    return path
