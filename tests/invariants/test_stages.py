"""Every architecture through every stage: what the contract promises holds for each artefact on the way."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.export import PARITY_BATCHES, export
from compress.prune.stage import prune
from compress.quantize.calibration import Batches
from compress.quantize.stage import quantize
from compress.recalibrate import batch_norms, recalibrate
from tests.zoo.factories import TINY_VIT, make_card, make_dataset, make_input
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Card
from zoo.artefact.predictor import Predictor
from zoo.artefact.preprocess import preprocess
from zoo.base.errors import ArtefactError
from zoo.base.files import sha256_file
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages, Normalise
from zoo.networks import checkpoint
from zoo.networks.registry import build, classifier, count_macs
from zoo.training.evaluate import logits_of
from zoo.training.recipe import PruneConfig, QuantizeConfig, RecalibrateConfig

_FOUR_STAGES = {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 16]}
_ONE_BLOCK = TINY_VIT | {"depth": 1}

ARCHITECTURES = {
    "cnn5": (32, {"filters": 8, "dense": 16, "img_size": 32}),
    "convnext_atto": (32, {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}),
    "deit_tiny_distilled_patch16_224": (32, _ONE_BLOCK),
    "lenet": (28, {}),
    "mobilenetv2_035": (32, {}),
    "mobilenetv3_small_050": (32, {}),
    "resnet10t": (32, {"channels": [16, 16, 32, 32]}),
    "resnet26": (32, {"channels": [16, 16, 32, 32]}),
    "resnext50_32x4d": (32, {"layers": [1, 1, 1, 1], "channels": [32, 32, 32, 32]}),
    "seresnet18": (32, _FOUR_STAGES),
    "test_efficientnet": (32, {}),
    "tf_efficientnet_lite0": (32, {}),
    "vgg11_bn": (32, {"mlp_ratio": 0.01}),
    "vit_tiny_patch16_224": (32, TINY_VIT),
}
_HEAD_STD = {"mobilenetv3_small_050": 0.001}
"""Of the classifier's weights, where 0.01 lets recalibration make logits of dozens."""
STAGES = ("train", "prune", "recalibrate", "export", "quantize")


@dataclass(frozen=True)
class Walk:
    """One architecture's artefacts, stage by stage; `recalibrate` is absent where there is no BatchNorm."""

    paths: dict[str, Path]
    dataset: Dataset

    def card(self, stage: str) -> Card:
        path = self.paths[stage]
        return (graph.read_card if path.suffix == ".onnx" else checkpoint.read_card)(path)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def walk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    size, arguments = ARCHITECTURES[request.param]
    folder, dataset = tmp_path_factory.mktemp(request.param), make_dataset(per_split=24)
    torch.manual_seed(0)
    spec = make_input(size, "L")
    model = build(request.param, classes=3, channels=1, arguments=arguments)
    # timm draws EfficientNet's head so large that the logits of a random network are in the hundreds.
    for parameter in classifier(model).parameters():
        torch.nn.init.normal_(parameter, std=_HEAD_STD.get(request.param, 0.01))
    card = make_card(architecture=request.param, spec=spec, stages=("train",), arguments=arguments)
    card = dataclasses.replace(card, inform=dataclasses.replace(card.inform, macs=count_macs(model, spec)))
    paths = {stage: folder / f"{stage}.safetensors" for stage in STAGES[:3]}
    paths |= {stage: folder / f"{stage}.onnx" for stage in STAGES[3:]}
    checkpoint.save(model, card, paths["train"])
    # Of two transformer blocks with random weights none would stay, and nothing to quantize.
    depth = "none" if request.param.startswith("vit") else "auto"
    prune(paths["train"], paths["prune"], PruneConfig(macs=0.6, round_to=2, depth=depth), dataset=dataset)
    before_export = "prune"
    if batch_norms(model):
        recalibrate(paths["prune"], paths["recalibrate"], RecalibrateConfig(batch_size=8), dataset=dataset)
        before_export = "recalibrate"
    else:
        with pytest.raises(ArtefactError, match="has no BatchNorm"):
            recalibrate(paths["prune"], paths["recalibrate"], RecalibrateConfig(), dataset=dataset)
        del paths["recalibrate"]
    export(paths[before_export], paths["export"], dataset=dataset)
    settings = QuantizeConfig(images=16, method="static", max_drop=100, keep="any")
    quantize(paths["export"], paths["quantize"], settings, dataset=dataset, name="tiny-int8", timed=False)
    return Walk(paths, dataset)


def test_every_stage_appends_itself_and_its_parents_digest(walk: Walk) -> None:
    stages = list(walk.paths)
    for parent, child in itertools.pairwise(stages):
        old, new = walk.card(parent).lineage, walk.card(child).lineage
        assert new[:-1] == old
        assert (new[-1].stage, new[-1].parent) == (child, sha256_file(walk.paths[parent]))


def test_metrics_are_of_the_files_own_bytes(walk: Walk) -> None:
    labels = np.array([sample.label for sample in walk.dataset.splits["validation"]])
    for stage in ("export", "quantize"):
        predictor = Predictor(walk.paths[stage])
        logits = logits_of(predictor.logits, walk.dataset.splits["validation"], predictor.card.use.input)
        (metrics,) = predictor.card.inform.metrics
        assert (metrics.split, metrics.n) == ("validation", 24)
        assert metrics.top1 == pytest.approx((logits.argmax(axis=1) == labels).mean())


def test_labels_and_input_agree_with_the_graph(walk: Walk) -> None:
    proto, card = graph.load(walk.paths["quantize"])
    inputs, outputs = graph.signature(proto)
    assert inputs == {"image": [None, *card.use.input.shape]}
    assert outputs == {"logits": [None, len(card.use.labels)]}


def test_one_preprocessing_for_validation_calibration_serving_and_bench(walk: Walk) -> None:
    spec, samples = walk.card("quantize").use.input, walk.dataset.splits["validation"][:3]
    served = np.stack([preprocess(sample.read(), spec) for sample in samples])
    seen: list[np.ndarray] = []
    logits_of(lambda batch: seen.append(batch) or np.zeros((3, 3), np.float32), samples, spec)
    calibrated = Batches(samples, spec)[0]
    assert np.array_equal(seen[0], served)
    assert np.array_equal(calibrated["image"], served)
    images = DecodedImages(samples, spec)
    validated = Normalise(spec, torch.device("cpu"))(torch.stack([images[index][0] for index in range(3)]))
    assert np.array_equal(validated.numpy(), served)


def test_pruned_checkpoints_come_back_from_their_header(walk: Walk) -> None:
    stage = "recalibrate" if "recalibrate" in walk.paths else "prune"
    model, card = checkpoint.load(walk.paths[stage])
    macs = walk.card("train").inform.macs
    assert count_macs(model, card.use.input) == card.inform.macs <= 0.6 * macs
    assert sum(p.numel() for p in model.parameters()) == card.inform.parameters


def test_export_computes_what_torch_computes(walk: Walk) -> None:
    model, card = checkpoint.load(walk.paths["recalibrate" if "recalibrate" in walk.paths else "prune"])
    predictor = Predictor(walk.paths["export"])
    for size in PARITY_BATCHES:
        images = torch.rand(size, *card.use.input.shape, generator=torch.Generator().manual_seed(size))
        with torch.inference_mode():
            wanted = model(images).numpy()
        assert np.abs(predictor.logits(images.numpy()) - wanted).max() <= 1e-4


def test_int8_knows_its_agreement_with_its_parent(walk: Walk) -> None:
    parent, child = Predictor(walk.paths["export"]), Predictor(walk.paths["quantize"])
    answers = [
        logits_of(model.logits, walk.dataset.splits["validation"], model.card.use.input).argmax(axis=1)
        for model in (parent, child)
    ]
    summary = child.card.lineage[-1].summary
    assert summary["agreement"] == pytest.approx((answers[0] == answers[1]).mean(), abs=1e-4)
    assert summary["reduce_range"] is True
    assert child.card.inform.precision == "int8"
    assert child.card.inform.bytes < 0.6 * parent.card.inform.bytes


def test_no_traces_of_this_machine(walk: Walk) -> None:
    for path in walk.paths.values():
        assert str(Path(torch.__file__).parent).encode() not in path.read_bytes()
        assert b"Traceback" not in path.read_bytes()


@pytest.mark.parametrize(
    ("stage", "act"),
    [
        ("export", lambda walk, out: quantize(walk.paths["quantize"], out, QuantizeConfig(), dataset=walk.dataset)),
        ("quantize", lambda walk, out: quantize(walk.paths["prune"], out, QuantizeConfig(), dataset=walk.dataset)),
        ("prune", lambda walk, out: prune(walk.paths["export"], out, PruneConfig())),
    ],
)
def test_wrong_order_is_refused_and_nothing_is_written(
    walk: Walk, tmp_path: Path, stage: str, act: Callable[[Walk, Path], object]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ArtefactError):
        act(walk, out)
    assert not out.exists(), stage
