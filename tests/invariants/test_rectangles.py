"""Input that is not square, of deep images, from training to the served answer: for maps and for patches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.export import export
from compress.prune.stage import prune
from compress.quantize.stage import quantize
from tests.serve.test_routes import serving
from tests.zoo.factories import TINY_VIT, encode
from zoo.artefact import onnx_file as graph
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import preprocess
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH
from zoo.data.catalogue import open_dataset
from zoo.data.dataset import Dataset
from zoo.explain.inside.attention_maps import attention_maps, tokens_of
from zoo.explain.inside.gradcam import default_layer, gradcam
from zoo.explain.inside.input_image import picture
from zoo.networks.checkpoint import load, read_card
from zoo.training.loop.config import FitConfig
from zoo.training.recipe import PruneConfig, QuantizeConfig, Run
from zoo.training.stage import train

SIZE = (32, 48)
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet10t": {"arguments": {"channels": [16, 16, 32, 32]}},
    "vit_tiny_patch16_224": {"arguments": TINY_VIT | {"img_size": list(SIZE)}},
}


@dataclass(frozen=True)
class Made:
    """What came of one network."""

    output: Path
    dataset: Dataset
    image: bytes
    """PNG of 12 bits in 16, 60 x 50 pixels (width x height)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stripes along and across, 12 bits in 16."""
    root, random = tmp_path_factory.mktemp("stripes"), np.random.default_rng(0)
    rows, columns = np.mgrid[:50, :60]
    for label, along in (("across", rows), ("along", columns)):
        (root / label).mkdir()
        for number in range(14):
            values = 2047 + 1500 * np.sin(along / 3 + random.uniform(0, 6)) + random.normal(0, 150, rows.shape)
            (root / label / f"{number}.png").write_bytes(encode(np.clip(values, 0, 4095).astype(np.uint16)))
    return root


@pytest.fixture(scope="module", params=NETWORKS)
def made(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    output = tmp_path_factory.mktemp("output")
    fit = FitConfig(epochs=2, batch_size=8, lr=1e-3)
    run = Run(name="small", model=request.param, data=str(folder), size=SIZE, train=fit, **NETWORKS[request.param])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCKETZOO_OUTPUT", str(output))
        dataset = open_dataset(str(folder))
        whole = train(run, output)
        smaller = output / "small-pruned" / CHECKPOINT
        prune(whole, smaller, PruneConfig(macs=0.6, round_to=2), dataset=dataset, name="small-pruned")
        for path in (whole, smaller):
            export(path, path.with_name(GRAPH), dataset=dataset)
        quantizing = QuantizeConfig(images=8, keep="any", max_drop=100, method="static")
        quantize(smaller.with_name(GRAPH), smaller.with_name(INT8_GRAPH), quantizing, dataset=dataset)
    return Made(output, dataset, (folder / "along" / "0.png").read_bytes())


def test_every_file_has_the_size_and_the_range(made: Made) -> None:
    cards = [read_card(path) for path in made.output.glob(f"*/{CHECKPOINT}")]
    cards += [graph.read_card(path) for path in made.output.glob("*/*.onnx")]
    assert len(cards) == 5
    for card in cards:
        spec = card.use.input
        assert (spec.shape, spec.range) == ((3, *SIZE), 4095)
        assert (spec.resize.rule, spec.crop) == ("cover", "centre")
        # Of the same aspect ratio, but for a part of a pixel.
        assert spec.canvas[1] == spec.canvas[0] * 3 // 2 > SIZE[1]
    for path in made.output.glob("*/*.onnx"):
        assert graph.signature(graph.load(path)[0])[0] == {"image": [None, 3, *SIZE]}


def test_predictors_and_torch_agree(made: Made) -> None:
    model, card = load(made.output / "small-pruned" / CHECKPOINT)
    values = preprocess(made.image, card.use.input)
    assert values.shape == (3, *SIZE) and values.max() > 0.5
    with torch.inference_mode():
        wanted = model.eval()(torch.from_numpy(values)[None]).numpy()
    predictor = Predictor(made.output / "small-pruned" / GRAPH)
    assert np.abs(predictor.logits(values[None]) - wanted).max() < 1e-4
    (metrics,) = graph.read_card(made.output / "small-pruned" / INT8_GRAPH).inform.metrics
    assert metrics.n == len(made.dataset.splits["validation"])


def test_the_server_answers_alike_and_tells_the_shape(made: Made) -> None:
    (answer,) = Predictor(made.output / "small" / GRAPH).predict([made.image])
    with serving(made.output) as client:
        sent = client.post("/v1/models/small:predict", content=made.image, headers={"Content-Type": "image/png"})
        (prediction,) = sent.json()["predictions"]
        assert prediction["label"] == answer.labels[0]
        assert prediction["probabilities"][0]["probability"] == pytest.approx(answer.probabilities[0], abs=1e-6)
        assert client.get("/v2/models/small").json()["inputs"][0]["shape"] == [-1, 3, *SIZE]
        spec = graph.read_card(made.output / "small" / GRAPH).use.input
        values = preprocess(made.image, spec)
        tensor = {"name": spec.name, "datatype": "FP32", "shape": [1, 3, *SIZE], "data": values.ravel().tolist()}
        wanted = [{"name": "probabilities"}]
        infer = client.post("/v2/models/small/infer", json={"inputs": [tensor], "outputs": wanted})
        assert max(infer.json()["outputs"][0]["data"]) == pytest.approx(answer.probabilities[0], abs=1e-6)
        tensor["shape"] = [1, 3, *SIZE[::-1]]
        assert client.post("/v2/models/small/infer", json={"inputs": [tensor]}).status_code == 422


def test_explanations_have_the_inputs_shape(made: Made) -> None:
    model, card = load(made.output / "small" / CHECKPOINT)
    inputs, shown = picture(made.image, card)
    assert shown.shape == (*SIZE, 3) and shown.max() > 200
    layer = default_layer(model.eval(), inputs)
    (places,) = gradcam(model, inputs, [0], layer=layer)
    assert places.shape[0] * SIZE[1] == places.shape[1] * SIZE[0]
    if card.build.architecture.startswith("vit"):
        assert tokens_of(model, attention_maps(model, inputs)[0].shape[-1], SIZE).grid == (4, 6)
