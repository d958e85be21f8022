"""What an artefact is worth without this project: in plain timm, as a Hugging Face folder, in plain ONNX Runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from tests.conftest import run_cli
from tests.docs.conftest import blocks
from tests.zoo.factories import make_card, make_graph, make_input, photo_input
from zoo.artefact import onnx_file
from zoo.artefact.card import Input, Resize
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import batch
from zoo.networks.checkpoint import load

PAGE = "leaving.md"


def _exec(code: str, names: dict[str, Any]) -> dict[str, Any]:
    assert "zoo." not in code.replace('"zoo.card"', ""), "the block leans on this project"
    exec(compile(code, PAGE, "exec"), names)
    return names


@pytest.fixture
def here(desk: Path, chain: Path) -> Path:
    """The working directory with the chain's artefacts below output/."""
    (desk / "output").symlink_to(chain)
    return desk


def test_a_checkpoint_in_timm_and_as_a_hugging_face_folder(here: Path) -> None:
    in_timm, as_folder, _ = blocks(PAGE, "python")
    names = _exec(as_folder, _exec(in_timm, {}))
    ours, card = load(here / "output/tiny-resnet/model.safetensors")
    images = torch.from_numpy(batch([(here / "digit.png").read_bytes()], card.use.input))
    with torch.inference_mode():
        wanted = ours(images)
        assert torch.equal(names["network"](images), wanted)
        assert torch.equal(names["again"](images), wanted)
    said = json.loads((here / "hugging-face/config.json").read_text())
    assert said["label_names"] == list(card.use.labels)
    assert said["pretrained_cfg"]["mean"] == list(card.use.input.mean)
    about = ModelCard.load(here / "hugging-face/README.md")
    assert about.data.library_name == "timm"
    assert about.data.pipeline_tag == "image-classification"


@pytest.mark.parametrize("artefact", ["tiny-vit-full", "tiny-vit-lora"])
def test_transformers_leave_as_well(here: Path, artefact: str) -> None:
    names = _exec(blocks(PAGE, "python")[0].replace("tiny-resnet", artefact), {})
    ours, card = load(here / f"output/{artefact}/model.safetensors")
    images = torch.from_numpy(batch([(here / "digit.png").read_bytes()], card.use.input))
    with torch.inference_mode():
        assert torch.equal(names["network"](images), ours(images))


def test_a_graph_in_plain_onnx_runtime(here: Path) -> None:
    names = _exec(blocks(PAGE, "python")[2], {})
    predictor = Predictor(here / "output/tiny-resnet/model.onnx", engine="onnxruntime")
    data = (here / "digit.png").read_bytes()
    assert np.array_equal(names["inputs"].transpose(2, 0, 1)[None], batch([data], predictor.card.use.input))
    (wanted,) = predictor.predict([data], top=10)
    order = np.argsort(-names["probabilities"], kind="stable")
    assert [names["use"]["labels"][index] for index in order][:1] == list(wanted.labels[:1])
    assert names["probabilities"][order] == pytest.approx(wanted.probabilities, abs=1e-5)


@pytest.mark.parametrize(
    "spec",
    [
        make_input(32),
        photo_input(32, 37),
        photo_input(32, 40, "bicubic"),
        Input(
            colour="RGB",
            size=(24, 40),
            resize=Resize(rule="cover", edge=27),
            crop="centre",
            mean=(0.4, 0.5, 0.6),
            std=(0.2, 0.3, 0.25),
        ),
    ],
    ids=["stretch", "shorter", "bicubic", "cover"],
)
@pytest.mark.parametrize("size", [(61, 45), (45, 83), (300, 199)])
def test_photographs_become_the_same_inputs(desk: Path, spec: Input, size: tuple[int, int]) -> None:
    path = desk / "output/tiny-resnet/model.onnx"
    graph = make_graph()
    for dimension, edge in zip(graph.graph.input[0].type.tensor_type.shape.dim[2:], spec.size, strict=True):
        dimension.dim_value = edge
    onnx_file.write(graph, make_card(spec=spec, stages=("train", "export")), path)
    noise = np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save("digit.png")
    names = _exec(blocks(PAGE, "python")[2], {})
    wanted = batch([Path("digit.png").read_bytes()], spec)
    assert np.array_equal(names["inputs"].transpose(2, 0, 1)[None], wanted)


def test_its_own_two_files_are_made_by_its_commands(desk: Path) -> None:
    for block in blocks(PAGE, "sh"):
        for line in block.splitlines():
            assert run_cli(*line.split()[1:]).exit_code == 0
    assert {path.name for path in (desk / "output/tiny-resnet").glob("model.*")} == {"model.onnx", "model.safetensors"}


def test_the_python_page_predicts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("reference/python.md", "python")
    exec(compile(code, "python.md", "exec"), {})
    assert capsys.readouterr().out.startswith("('")
