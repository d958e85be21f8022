"""Linear probes: the folded map is the classifier, and a checkpoint of it answers the same."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from tests.zoo.factories import TINY_VIT
from zoo.base.errors import DataError, UsageError
from zoo.data import decoded as module
from zoo.data.catalogue import open_dataset
from zoo.data.decoded import DecodedImages
from zoo.networks.checkpoint import load
from zoo.networks.cutting.truncate import features_of
from zoo.studies.probe import STRENGTHS, Extracted, extract, fit_probe, install, probe, write_probe
from zoo.training.evaluate import torch_logits
from zoo.training.recipe import Run
from zoo.training.stage import starting_point
from zoo.training.workspace import read_notes

RUN = Run(model="resnet10t", data="digits", size=32, images_per_split=60)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    dataset = open_dataset("digits", per_split=60)
    model, card = starting_point(RUN, dataset, None)
    return dataset, model, card


def made(classes: int, *, features: int = 6, images: int = 40) -> Extracted:
    """Clouds around one centre per class; features of very different scale, and one that is constant."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(classes, features)) * 1.5
    labels = np.arange(images) % classes
    scale = 10.0 ** np.arange(features)

    def draw():
        cloud = (centres[labels] + generator.normal(size=(images, features))) * scale + 5
        cloud[:, -1] = 3.0
        return cloud.astype(np.float32)

    return Extracted(
        layer="", train=draw(), train_labels=labels, validation=draw(), validation_labels=labels, seconds=0.0
    )


def labelled(classes: int):
    return dataclasses.replace(open_dataset("digits", per_split=20), labels=tuple("abcdefghij"[:classes]))


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("name", ["logistic", "svm"])
def test_the_folded_map_is_scikit_learns_pipeline(classes, name):
    features = made(classes)
    found = fit_probe(features, labelled(classes), classifier=name)
    assert found.weight.shape == (classes, 6)
    assert found.bias.shape == (classes,)
    assert found.weight.dtype == found.bias.dtype == np.float32
    scaler = StandardScaler().fit(features.train)
    solver = {"logistic": LogisticRegression(C=found.strength, max_iter=2000)}.get(
        name, LinearSVC(C=found.strength, dual="auto", random_state=0, max_iter=2000)
    )
    solver.fit(scaler.transform(features.train), features.train_labels)
    theirs = solver.decision_function(scaler.transform(features.validation))
    ours = features.validation @ found.weight.T + found.bias
    if classes == 2:
        ours = ours[:, 1] - ours[:, 0]
    assert ours == pytest.approx(theirs, abs=1e-3)
    assert found.validation.top1 == solver.score(scaler.transform(features.validation), features.validation_labels)


def test_strength_is_the_one_of_the_best_validation_accuracy():
    features = made(3, features=30, images=30)
    found = fit_probe(features, labelled(3))
    scaler = StandardScaler().fit(features.train)
    scores = {
        strength: LogisticRegression(C=strength, max_iter=2000)
        .fit(scaler.transform(features.train), features.train_labels)
        .score(scaler.transform(features.validation), features.validation_labels)
        for strength in STRENGTHS
    }
    assert found.validation.top1 == max(scores.values()) == scores[found.strength]


def test_statistics_are_of_the_training_images_only():
    features = made(3)
    moved = dataclasses.replace(features, validation=features.validation + 1e6)
    assert fit_probe(moved, labelled(3)).validation.top1 < 0.5 < fit_probe(features, labelled(3)).validation.top1


def test_a_class_without_training_images():
    features = made(3)
    with pytest.raises(DataError, match="no training image of d; a probe needs every class"):
        fit_probe(features, labelled(4))


def test_features_are_those_of_evaluation_mode_and_leave_the_network_alone(network):
    dataset, model, card = network
    images = DecodedImages(dataset.splits["train"], card.use.input)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        found = extract(features_of(model, "layer2"), images, images, layer="layer2")
        assert all(module.training for module in model.modules())
    finally:
        model.eval()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.train.shape == (60, 128)
    np.testing.assert_array_equal(found.train, found.validation)


def test_a_network_of_two_heads_answers_what_the_probe_answers():
    dataset = open_dataset("digits", per_split=40)
    run = Run(model="deit_tiny_distilled_patch16_224", arguments=TINY_VIT, data="digits", size=32, images_per_split=40)
    model, card = starting_point(run, dataset, None)
    (found,) = probe(dataset, model, card.use.input)
    images = DecodedImages(dataset.splits["validation"], card.use.input)
    features = extract(features_of(model, ""), images, images).train
    install(model, found)
    logits = torch_logits(model, images)
    np.testing.assert_allclose(logits, features @ found.weight.T + found.bias, atol=1e-4)
    model.head_dist = torch.nn.Linear(5, 10)
    with pytest.raises(UsageError, match=r"has the shape \[10, 5\]; it can be printed, but not written"):
        install(model, found)


def test_layers_times_classifiers(network, monkeypatch):
    dataset, model, card = network
    decoded = []
    original = module._channels_first
    monkeypatch.setattr(
        module, "_channels_first", lambda sample, spec: decoded.append(sample) or original(sample, spec)
    )
    found = probe(dataset, model, card.use.input, layers=("layer1", ""), classifiers=("svm", "logistic"))
    assert [(entry.layer, entry.classifier, entry.dim) for entry in found] == [
        ("layer1", "svm", 64),
        ("layer1", "logistic", 64),
        ("", "svm", 512),
        ("", "logistic", 512),
    ]
    assert all(entry.validation.n == 60 and entry.validation.split == "validation" for entry in found)
    assert all(entry.validation.top1 > 0.3 for entry in found), "chance is 0.1"
    assert len(decoded) == 120, "training and validation images, once"


def test_of_many_images_some_are_looked_at(network, monkeypatch, capsys):
    dataset, model, card = network
    monkeypatch.setattr("zoo.studies.probe.MOST_IMAGES", 40)
    (found,) = probe(dataset, model, card.use.input)
    assert 35 <= found.validation.n <= 45
    assert capsys.readouterr().err.count("of 60 images of ") == 2


@pytest.mark.parametrize("layer", ["", "layer2"])
def test_a_checkpoint_answers_as_the_probe(layer, tmp_path):
    dataset = open_dataset("digits", per_split=60)
    model, card = starting_point(RUN, dataset, None)
    (found,) = probe(dataset, model, card.use.input, layers=(layer,))
    features = extract(
        features_of(model, layer), *[DecodedImages(dataset.splits[s], card.use.input) for s in ("train", "validation")]
    )
    path = write_probe(RUN, dataset, model, card, found, tmp_path / "probe")
    again, written = load(path)
    logits = torch_logits(again, DecodedImages(dataset.splits["validation"], card.use.input))
    assert logits == pytest.approx(features.validation @ found.weight.T + found.bias, abs=1e-3)
    assert [(metrics.split, metrics.n) for metrics in written.inform.metrics] == [("validation", 60), ("test", 60)]
    assert written.metrics("validation").top1 == found.validation.top1
    assert (written.name, written.build.layer) == ("probe", layer)
    (entry,) = written.lineage
    assert (entry.stage, entry.parent, entry.config["method"], entry.config["layer"]) == ("train", None, "probe", layer)
    assert entry.summary["strength"] == found.strength
    assert written.inform.parameters == sum(parameter.numel() for parameter in again.parameters())
    assert read_notes(path.parent).data.per_split == 60


def test_a_shorter_network_is_smaller(tmp_path):
    dataset = open_dataset("digits", per_split=60)
    model, card = starting_point(RUN, dataset, None)
    (found,) = probe(dataset, model, card.use.input, layers=("layer1",))
    short = load(write_probe(RUN, dataset, model, card, found, tmp_path / "probe"))[1]
    assert short.inform.macs < card.inform.macs
    assert short.inform.parameters < sum(parameter.numel() for parameter in model.parameters()) / 10


@pytest.mark.parametrize(
    "run", [Run(model="lenet", data="digits"), Run(model="vit_tiny_patch16_224", arguments=TINY_VIT, size=32, data="x")]
)
def test_other_families(run):
    dataset = open_dataset("digits", per_split=60)
    model, card = starting_point(run, dataset, None)
    (found,) = probe(dataset, model, card.use.input)
    install(model, found)
    logits = torch_logits(model, DecodedImages(dataset.splits["validation"], card.use.input))
    truth = np.array([sample.label for sample in dataset.splits["validation"]])
    assert (logits.argmax(axis=1) == truth).mean() == found.validation.top1 > 0.3


def test_a_probe_that_does_not_fit_the_classifier(network):
    dataset, model, card = network
    (found,) = probe(dataset, model, card.use.input, layers=("layer1",))
    with pytest.raises(UsageError, match=r"maps 64 features to 10 labels, the classifier of ResNet has .*\[10, 512\]"):
        install(model, found)


def test_unknown_names(network):
    dataset, model, card = network
    with pytest.raises(UsageError, match="unknown layer 'layr2'; did you mean layer2"):
        probe(dataset, model, card.use.input, layers=("layr2",))
    with pytest.raises(UsageError, match="unknown classifier 'svn'; did you mean svm"):
        probe(dataset, model, card.use.input, classifiers=("svn",))


def test_a_solver_that_does_not_converge_says_so(monkeypatch, capsys):
    monkeypatch.setattr("zoo.studies.probe._ITERATIONS", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_probe(made(3), labelled(3)).validation.n == 40
    assert "logistic, C = 1: not converged after 1 iterations; measured as it is" in capsys.readouterr().err
