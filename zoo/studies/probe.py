"""Linear probes: how well frozen features of a layer separate the classes, and the best of them as a checkpoint.

A probe is a linear classifier on features that are not trained (Alain & Bengio 2016, arXiv 1610.01644). It takes one
pass over the images, so it is the cheapest way to learn what pretraining is worth on a data set, and with few images
often the most accurate. `N` images, `F` features, `K` labels.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.svm import LinearSVC
from torch import nn

from zoo.artefact.card import Card, Input, LineageEntry, Metrics
from zoo.artefact.predictor import softmax
from zoo.base.errors import DataError, UsageError, unknown_name
from zoo.base.files import CHECKPOINT, code_commit
from zoo.base.progress import note
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages
from zoo.data.splits import some
from zoo.networks.checkpoint import save
from zoo.networks.cutting.truncate import features_of, truncate
from zoo.networks.registry import count_macs, last_layers
from zoo.networks.weights.first_weights import weights_digest
from zoo.training.evaluate import accuracy, fit_temperature, torch_logits
from zoo.training.recipe import Run
from zoo.training.stage import measured, source_of
from zoo.training.workspace import Notes, write_notes

__all__ = [
    "CLASSIFIERS",
    "MOST_IMAGES",
    "STRENGTHS",
    "Extracted",
    "ProbeReport",
    "decoded",
    "extract",
    "fit_probe",
    "install",
    "probe",
    "write_probe",
]

CLASSIFIERS = ("logistic", "svm")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse regularisation (scikit-learn's C) that is tried on validation; for standardised features. A larger C than 1
fits the training images exactly wherever there are fewer images than features, and so changes nothing more."""

MOST_IMAGES = 10_000
"""Of each split that are looked at: what a frozen layer is worth does not take more, and all features are in memory."""

_ITERATIONS = 2000
_BATCH = 64

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Extracted:
    """What a frozen layer says about the training and validation images."""

    layer: str
    train: npt.NDArray[np.float32] = field(repr=False)
    """[N, F]"""
    train_labels: Labels = field(repr=False)
    """[N]"""
    validation: npt.NDArray[np.float32] = field(repr=False)
    validation_labels: Labels = field(repr=False)
    seconds: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ProbeReport:
    """The best linear classifier on one layer's features."""

    layer: str
    """Empty: the pooled features that the network's own classifier reads."""
    dim: int
    """Number of features F."""
    classifier: str
    """`logistic` or `svm`."""
    strength: float
    """The C of STRENGTHS that was best on validation."""
    validation: Metrics
    seconds: float
    """Features and all fits."""
    weight: npt.NDArray[np.float32] = field(repr=False)
    """[K, F]; the standardisation is folded in: logits are `features @ weight.T + bias`."""
    bias: npt.NDArray[np.float32] = field(repr=False)
    """[K]"""


def probe(
    dataset: Dataset,
    model: nn.Module,
    spec: Input,
    *,
    layers: Sequence[str] = ("",),
    classifiers: Sequence[str] = ("logistic",),
) -> list[ProbeReport]:
    """Probe layers of a frozen network; every image is decoded once, every layer computed once.

    Regularisation is chosen on the validation split and the accuracy reported on the same, so the best of many layers
    is a little optimistic; the test split is not read.

    Args:
        dataset: training and validation images.
        model: stays as it is.
        spec: the network's input.
        layers: names of layers; empty: the pooled features before the classifier.
        classifiers: of CLASSIFIERS.

    Returns:
        One report per layer and classifier, in this order.

    Raises:
        UsageError: unknown layer or classifier (with close matches).
        DataError: a class without training images.
    """
    for name in classifiers:
        if name not in CLASSIFIERS:
            raise unknown_name("classifier", name, CLASSIFIERS)
    trunks = {layer: features_of(model, layer) for layer in layers}
    train, validation = decoded(dataset, spec)
    reports = []
    for layer, trunk in trunks.items():
        features = extract(trunk, train, validation, layer=layer)
        reports += [fit_probe(features, dataset, classifier=name) for name in classifiers]
    return reports


def decoded(dataset: Dataset, spec: Input) -> tuple[DecodedImages, DecodedImages]:
    """Training and validation images to compare features on, MOST_IMAGES of each or about so many."""
    found = []
    for split in ("train", "validation"):
        chosen = some(dataset.splits[split], MOST_IMAGES)
        if len(chosen) < len(dataset.splits[split]):
            note(f"{dataset.name}: looking at {len(chosen):,} of {len(dataset.splits[split]):,} images of {split}")
        found.append(DecodedImages(chosen, spec))
    return found[0], found[1]


def extract(trunk: nn.Module, train: DecodedImages, validation: DecodedImages, *, layer: str = "") -> Extracted:
    """The features of images, in evaluation mode: no dropout, BatchNorm with its stored statistics.

    Args:
        trunk: from inputs [B, C, H, W] to features [B, F], as zoo.networks.cutting.truncate.features_of makes them.
        train: decoded training images.
        validation: decoded validation images.
        layer: its name, for the record.
    """
    begin = time.perf_counter()
    found = [torch_logits(trunk, images, batch_size=_BATCH) for images in (train, validation)]
    return Extracted(
        layer=layer,
        train=found[0],
        train_labels=train.labels.numpy(),
        validation=found[1],
        validation_labels=validation.labels.numpy(),
        seconds=time.perf_counter() - begin,
    )


def fit_probe(features: Extracted, dataset: Dataset, *, classifier: str = "logistic") -> ProbeReport:
    """The linear classifier whose C is best on the validation images.

    Of equally accurate ones it is the one of the least log-loss at its best temperature. Features are standardised
    with mean and standard deviation of the training images only. Logistic regression is multinomial; the SVM is
    one-against-rest with squared hinge loss.

    Raises:
        DataError: a class without training images.
    """
    begin = time.perf_counter()
    present = set(features.train_labels.tolist())
    if missing := [label for index, label in enumerate(dataset.labels) if index not in present]:
        raise DataError(f"{dataset.name}: no training image of {', '.join(missing[:5])}; a probe needs every class")
    mean, std = features.train.mean(axis=0, dtype=np.float64), features.train.std(axis=0, dtype=np.float64)
    std[std < 1e-12] = 1.0
    standard = (features.train - mean) / std
    found: list[tuple[tuple[float, float], ProbeReport]] = []
    for strength in STRENGTHS:
        weight, bias = _fit(classifier, strength, standard, features.train_labels)
        folded = weight / std
        final = folded.astype(np.float32), (bias - folded @ mean).astype(np.float32)
        logits = features.validation @ final[0].T + final[1]
        truth = features.validation_labels
        measured = accuracy(logits, truth, dataset=dataset.name, split="validation")
        report = ProbeReport(
            layer=features.layer,
            dim=features.train.shape[1],
            classifier=classifier,
            strength=strength,
            validation=measured,
            seconds=0.0,
            weight=final[0],
            bias=final[1],
        )
        loss = log_loss(truth, softmax(logits, fit_temperature(logits, truth)), labels=range(len(dataset.labels)))
        found.append(((measured.top1, -loss), report))
    best = max(found, key=lambda entry: entry[0])[1]
    return dataclasses.replace(best, seconds=features.seconds + time.perf_counter() - begin)


def write_probe(run: Run, dataset: Dataset, model: nn.Module, card: Card, report: ProbeReport, folder: Path) -> Path:
    """Write a probe as a checkpoint: the network up to the layer, and the linear classifier.

    The test split is read once, for the card.

    Args:
        run: what the network is, for the record.
        dataset: what the probe was fitted on.
        model: the network that was probed.
        card: as zoo.training.stage.starting_point makes it with the model.
        report: of :func:`probe`.
        folder: gets model.safetensors and run.json.

    Returns:
        The checkpoint's path.

    Raises:
        UsageError: the classifier cannot take the probe (see :func:`install`).
    """
    network = truncate(model, report.layer, len(dataset.labels)) if report.layer else model
    install(network, report)
    network.eval()
    entry = LineageEntry(
        stage="train",
        config={
            "method": "probe",
            "data": dataset.describe(),
            "model": run.model,
            "arguments": dict(run.arguments),
            "size": run.size,
            "weights": weights_digest(run.weights),
            "layer": report.layer,
            "classifier": report.classifier,
            "strengths": list(STRENGTHS),
        },
        parent=None,
        commit=code_commit(),
        summary={"strength": report.strength, "dim": report.dim, "validation_top1": report.validation.top1},
        seconds=round(report.seconds, 1),
    )
    card = dataclasses.replace(
        card,
        name=folder.name,
        build=dataclasses.replace(card.build, layer=report.layer),
        inform=dataclasses.replace(card.inform, macs=count_macs(network, card.use.input)),
        lineage=(*card.lineage, entry),
    )
    path = folder / CHECKPOINT
    save(network, measured(network, card, dataset, test=True), path)
    source = dataclasses.replace(source_of(run), name=dataset.location or run.data)
    write_notes(folder, Notes(role=run.role, data=source, test=source))
    return path


def install(model: nn.Module, report: ProbeReport) -> None:
    """Put a probe of the pooled features into the network's own classifier, which it replaces exactly.

    A network of several heads averages their answers, and its pooled features are the mean of what they read: each head
    gets the probe.

    Raises:
        UsageError: a head of the classifier is not one linear layer of as many features and labels.
    """
    layers = last_layers(model)
    for layer in layers:
        bias = "" if layer.bias is not None else " and no bias"
        if layer.weight.numel() != report.weight.size or len(layer.weight) != len(report.weight) or bias:
            raise UsageError(
                f"the probe maps {report.dim} features to {len(report.weight)} labels, the classifier of "
                f"{type(model).__name__} has the shape {list(layer.weight.shape)}{bias}; "
                "it can be printed, but not written (leave out --out)"
            )
    with torch.no_grad():
        for layer in layers:
            layer.weight.copy_(torch.from_numpy(report.weight).view_as(layer.weight))
            assert layer.bias is not None
            layer.bias.copy_(torch.from_numpy(report.bias))


def _fit(classifier: str, strength: float, features: Array, labels: Labels) -> tuple[Array, Array]:
    """Weight [K, F] and bias [K]."""
    solver = (
        LogisticRegression(C=strength, max_iter=_ITERATIONS)
        if classifier == "logistic"
        else LinearSVC(C=strength, dual="auto", max_iter=_ITERATIONS, random_state=0)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ConvergenceWarning)
        solver.fit(features, labels)
    if caught:
        note(f"{classifier}, C = {strength:g}: not converged after {_ITERATIONS} iterations; measured as it is")
    weight, bias = np.asarray(solver.coef_, dtype=np.float64), np.asarray(solver.intercept_, dtype=np.float64)
    if len(weight) == 1:
        # Two classes share one row, the evidence for the second; logits that differ by it mean the same.
        return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
