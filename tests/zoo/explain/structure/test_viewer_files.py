"""Graph files: the copies and traces answer as the network does, and the artefact stays as it is."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from tests.invariants.test_families import FAMILIES
from tests.zoo.factories import make_card, make_input, write_artefact
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import KEY, from_json
from zoo.base.errors import ArtefactError, CheckError, UsageError
from zoo.base.files import sha256_file
from zoo.explain.structure.viewer_files import count_shapes, write_shaped, write_torchscript
from zoo.networks.registry import build


def test_a_copy_with_shapes(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "seen" / "graph.onnx"
    card = write_artefact(path)
    before = sha256_file(path)
    assert count_shapes(path) == (0, 2)
    assert write_shaped(path, out) == (2, 2)
    assert count_shapes(out) == (2, 2)
    # The same network and card, by the digest that the card has of it.
    assert graph.read_card(out) == card
    onnx.checker.check_model(onnx.load(out), full_check=True)
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in onnx.load(out).graph.value_info
    }
    assert shapes["pooled"] == ["N", 3, 1, 1]
    assert sha256_file(path) == before


def test_the_artefact_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_artefact(path)
    with pytest.raises(UsageError, match="this is the artefact itself"):
        write_shaped(path, tmp_path / "." / "model.onnx")
    with pytest.raises(UsageError, match=r"model.int8.onnx is what an artefact's file is called"):
        write_shaped(path, tmp_path / "model.int8.onnx")
    link = tmp_path / "link.onnx"
    link.hardlink_to(path)
    with pytest.raises(UsageError, match="this is the artefact itself"):
        write_shaped(path, link)


@pytest.mark.parametrize("name", ["CNN5", "Swin", "ViT"])
def test_traces_answer_as_the_network(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = build(family.name, classes=3, channels=3, arguments=family.arguments).eval()
    card = make_card(architecture=family.name, spec=make_input(family.size), arguments=family.arguments)
    out = tmp_path / "graph.pt"
    assert 0 <= write_torchscript(model, card, out) <= 1e-4
    extra = {KEY: ""}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.load` is deprecated", FutureWarning)
        loaded = torch.jit.load(out, _extra_files=extra)
    assert from_json(extra[KEY].decode() if isinstance(extra[KEY], bytes) else extra[KEY], where="trace") == card
    images = torch.rand(3, 3, family.size, family.size)
    with torch.inference_mode():
        assert torch.allclose(loaded(images), model(images), atol=1e-4)


class Counting(nn.Module):
    """Its answer depends on how often it was asked, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.last = nn.Linear(1, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        answer: torch.Tensor = self.last(images.mean(dim=(1, 2, 3))[:, None]) + self.calls
        return answer


class Failing(nn.Module):
    def forward(self, images: torch.Tensor) -> list[str]:
        return ["no tensor"]


def test_a_trace_that_answers_otherwise_is_not_written(tmp_path: Path) -> None:
    out = tmp_path / "graph.pt"
    with pytest.raises(CheckError, match="the network and its trace differ by"):
        write_torchscript(Counting(), make_card(), out)
    with pytest.raises(ArtefactError, match="torch cannot trace lenet"):
        write_torchscript(Failing(), make_card(), out)
    assert list(tmp_path.iterdir()) == []


def test_other_warnings_of_the_network_are_not_hidden(tmp_path: Path) -> None:
    class Outspoken(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            warnings.warn("look here", UserWarning, stacklevel=1)
            return super().forward(images.mean(dim=(2, 3)))

    with pytest.warns(UserWarning, match="look here"):
        write_torchscript(Outspoken(3, 3), make_card(), tmp_path / "graph.pt")
    assert zipfile.is_zipfile(io.BytesIO((tmp_path / "graph.pt").read_bytes()))
