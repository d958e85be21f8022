"""Small cards, images, graphs and networks that the tests of zoo/ are made from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from zoo.artefact.card import Build, Card, Draft, Inform, Input, LineageEntry, Output, Resize, Use
from zoo.artefact.preprocess import encode_png
from zoo.data.dataset import Dataset, Sample

LABELS = ("cat", "dog", "hen")
TINY_VIT = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 48}
"""Arguments that make timm's `vit_tiny_patch16_224` fast to test: 17 tokens of 48 features, two blocks, three heads."""


def make_input(size: int = 32, colour: str = "RGB", **changes: Any) -> Input:
    channels = {"RGB": 3, "L": 1}[colour]
    fields = {"resize": Resize(rule="stretch"), "mean": (0.5,) * channels, "std": (0.25,) * channels} | changes
    return Input(colour=colour, size=(size, size), **fields)


def photo_input(size: int, edge: int, kernel: str = "bilinear") -> Input:
    return make_input(size, resize=Resize(rule="shorter", edge=edge, filter=kernel), crop="centre")


def make_draft(**changes: Any) -> Draft:
    fields = {"dataset": "tiny", "split": "validation", "digest": "0" * 64, "n": 100, "agreement": 0.99}
    fields |= {"top1_before": 0.9, "top1_after": 0.9, "max_drop": 0.005}
    return Draft(**fields | changes)


def make_card(
    labels: Sequence[str] = LABELS,
    *,
    architecture: str = "lenet",
    spec: Input | None = None,
    stages: Sequence[str] = (),
    arguments: dict[str, Any] | None = None,
) -> Card:
    return Card(
        name="tiny",
        build=Build(architecture=architecture, arguments=arguments or {}),
        use=Use(labels=tuple(labels), input=spec or make_input(), output=Output()),
        inform=Inform(parameters=1, macs=1, bytes=1),
        lineage=tuple(
            LineageEntry(stage=stage, config={}, parent=None if i == 0 else "0" * 64) for i, stage in enumerate(stages)
        ),
    )


def picture(seed: int = 0, height: int = 8, width: int = 8, channels: int | None = 3) -> npt.NDArray[np.uint8]:
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(image: Image.Image | npt.NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(stream, format=kind, **options)
    return stream.getvalue()


def make_samples(count: int, classes: int = 2, *, seed: int = 0, size: int = 8, prefix: str = "") -> list[Sample]:
    """Random greyscale images, the classes in turn."""
    found = []
    for index in range(count):
        data = encode_png(picture(seed * 10_000 + index, size, size, None))
        digest = hashlib.sha256(data).hexdigest()
        found.append(Sample(name=f"{prefix}{index}", label=index % classes, digest=digest, source=data))
    return found


def make_dataset(per_split: int = 12, classes: int = 3) -> Dataset:
    splits = {
        split: make_samples(per_split, classes, seed=number, prefix=f"{split}/")
        for number, split in enumerate(("train", "validation", "test"))
    }
    return Dataset(name="tiny", labels=LABELS[:classes], splits=splits, rule="made up", colour="L", photographs=False)


def make_graph(labels: int = 3, *, size: int = 32, seed: int = 0, scale: float = 4.0) -> onnx.ModelProto:
    """Mean colour -> linear layer: float32 [N, 3, size, size] to logits [N, labels]."""
    weight = np.random.default_rng(seed).normal(size=(3, labels)).astype(np.float32) * scale
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"], name="pool"),
            helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"], name="head"),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", labels])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_artefact(path: Path, card: Card | None = None, **graph: Any) -> Card:
    """An ONNX artefact with its golden answer, written as the exporter does."""
    import zoo.artefact.onnx_file
    from zoo.artefact.predictor import Predictor, draw_golden

    model = make_graph(**graph)
    written = zoo.artefact.onnx_file.write(model, card or make_card(stages=("train", "export")), path)
    golden = draw_golden(Predictor(path, check=False, threads=1))
    return zoo.artefact.onnx_file.write(model, replace(written, use=replace(written.use, golden=golden)), path)
