"""Export: what is written computes what the checkpoint does, or nothing is written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import export as module
from compress.export import PARITY_TOLERANCE, export, to_onnx
from tests.zoo.factories import make_card, make_input
from zoo.artefact.predictor import Predictor
from zoo.base.errors import ArtefactError, CheckError
from zoo.networks import checkpoint
from zoo.networks.registry import build


def _checkpoint(folder: Path, scale: float = 1.0) -> Path:
    torch.manual_seed(0)
    model = build("lenet", classes=3, channels=1)
    with torch.no_grad():
        model.head.weight.mul_(scale)
        model.head.bias.add_(1.0).mul_(scale)
    path = folder / "model.safetensors"
    checkpoint.save(model, make_card(spec=make_input(28, "L"), stages=("train",)), path)
    return path


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_rounding_counts_relative_to_the_logits(tmp_path: Path, scale: float) -> None:
    card = export(_checkpoint(tmp_path, scale), tmp_path / "model.onnx")
    assert 0 <= card.lineage[-1].summary["parity"] <= PARITY_TOLERANCE
    assert Predictor(tmp_path / "model.onnx", threads=1).card == card


@pytest.mark.parametrize(("scale", "factor"), [(1e6, 1.001), (1.0, 1.001), (100.0, 0.99)])
def test_another_answer_is_no_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, factor: float
) -> None:
    def other(model: Any, card: Any) -> Any:
        with torch.no_grad():
            model.head.weight.mul_(factor)
            model.head.bias.mul_(factor)
        proto = to_onnx(model, card)
        with torch.no_grad():
            model.head.weight.div_(factor)
            model.head.bias.div_(factor)
        return proto

    monkeypatch.setattr(module, "to_onnx", other)
    with pytest.raises(CheckError, match=r"torch and ONNX Runtime differ by .* at batch 1, at most .* is allowed"):
        export(_checkpoint(tmp_path, scale), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_what_is_no_number_has_no_parity(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="differ by nan at batch 1"):
        export(_checkpoint(tmp_path, math.inf), tmp_path / "model.onnx")


def test_what_torch_cannot_export_is_said_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        try:
            raise ValueError("\nCannot view a tensor\nWhile executing view")
        except ValueError as error:
            raise RuntimeError("Failed.\nCreate an issue in the PyTorch GitHub repository") from error

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ArtefactError) as caught:
        export(_checkpoint(tmp_path), tmp_path / "model.onnx")
    assert str(caught.value) == (
        "torch cannot export lenet: Cannot view a tensor; it can be trained and evaluated, but not served: another "
        "architecture is needed for that"
    )


@pytest.mark.parametrize(
    ("width", "dtype", "size"), [(2**15, torch.float32, "4.0 GiB"), (40_000, torch.float16, "3.0 GiB")]
)
def test_a_network_too_large_for_one_file_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, width: int, dtype: torch.dtype, size: str
) -> None:
    monkeypatch.setattr(module, "_translate", None)
    model = torch.nn.Linear(width, width, bias=False, device="meta", dtype=dtype)
    with pytest.raises(ArtefactError, match=rf"of at most 2\.0 GiB, what one ONNX file holds, got {size}.*prune it"):
        to_onnx(model, make_card())


def test_buffers_count_and_shared_weights_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers that share 1,000 weights, and a buffer of 100 numbers: 4,400 bytes."""
    shared = torch.nn.Linear(10, 100, bias=False)
    model = torch.nn.Sequential(shared, torch.nn.Linear(10, 100, bias=False))
    model[1].weight = shared.weight
    model.register_buffer("more", torch.zeros(100))
    monkeypatch.setattr(module, "_translate", lambda *_: "translated")
    monkeypatch.setattr(module, "LARGEST_FILE", 4400)
    assert to_onnx(model, make_card()) == "translated"
    monkeypatch.setattr(module, "LARGEST_FILE", 4399)
    with pytest.raises(ArtefactError, match=r"\(1,000 parameters\)"):
        to_onnx(model, make_card())
