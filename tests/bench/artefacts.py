"""A family of tiny artefacts whose cards say what a real chain's say: `cat`, and `cat-pruned` with its INT8 file."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from tests.zoo.factories import make_card, make_graph, make_input
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Card, LineageEntry
from zoo.artefact.predictor import Predictor, draw_golden
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, sha256_file
from zoo.networks import checkpoint
from zoo.networks.registry import build

TRAIN = LineageEntry(stage="train", config={}, parent=None, summary={"seconds": 12.5})


def write_checkpoint(folder: Path, lineage: tuple[LineageEntry, ...], *, size: int = 32) -> Path:
    """A LeNet with random weights, and this lineage; it can be run at a size of 28."""
    torch.manual_seed(0)
    card = replace(make_card(spec=make_input(size)), name=folder.name, lineage=lineage)
    checkpoint.save(build("lenet", classes=3, channels=3), card, folder / CHECKPOINT)
    return folder / CHECKPOINT


def write_graph(path: Path, lineage: tuple[LineageEntry, ...], **changes: Any) -> Path:
    """A graph that classifies by mean colour; `seed` draws its weights, the rest changes the card's `inform`."""
    model: onnx.ModelProto = make_graph(seed=changes.pop("seed", 0))
    card: Card = replace(make_card(), name=path.parent.name, lineage=lineage)
    card = replace(card, inform=replace(card.inform, **changes))
    graph.write(model, card, path)
    golden = draw_golden(Predictor(path, check=False, threads=1))
    graph.write(model, replace(card, use=replace(card.use, golden=golden)), path)
    return path


def exported(source: Path, **changes: Any) -> Path:
    """`model.onnx` beside a checkpoint."""
    entry = LineageEntry(stage="export", config={}, parent=sha256_file(source))
    return write_graph(source.with_name(GRAPH), (*checkpoint.read_card(source).lineage, entry), **changes)


def quantized(source: Path, **changes: Any) -> Path:
    """`model.int8.onnx` beside an exported graph."""
    entry = LineageEntry(stage="quantize", config={}, parent=sha256_file(source))
    lineage = (*graph.read_card(source).lineage, entry)
    return write_graph(source.with_name(INT8_GRAPH), lineage, precision="int8", **changes)


def pruned(source: Path, folder: Path) -> Path:
    """The checkpoint of a pruned artefact."""
    entry = LineageEntry(stage="prune", config={}, parent=sha256_file(source))
    return write_checkpoint(folder, (*checkpoint.read_card(source).lineage, entry))


def family(root: Path) -> dict[str, Path]:
    """Four graphs that differ in their weights, by the names of issue and table: parent, int8, pruned, both."""
    parent = write_checkpoint(root / "cat", (TRAIN,))
    child = pruned(parent, root / "cat-pruned")
    found = {"parent": exported(parent, macs=4_000_000), "pruned": exported(child, seed=1, macs=2_000_000)}
    found["int8"] = quantized(found["parent"], seed=2, macs=4_000_000)
    found["both"] = quantized(found["pruned"], seed=3, macs=2_000_000)
    return found


def rewrite(path: Path) -> None:
    """Write a checkpoint again with another digest and the same lineage, as zoo.training.stage.add_test does."""
    model, card = checkpoint.load(path)
    before = sha256_file(path)
    checkpoint.save(model, dataclasses.replace(card, use=replace(card.use, temperature=2.0)), path)
    assert sha256_file(path) != before
