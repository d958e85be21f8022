"""Accuracy with its interval, per class, calibration, and what goes of them into a card. `N` images, `K` labels."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zoo.artefact.card import Card, Input, Metrics, Reference
from zoo.artefact.predictor import Predictor, softmax
from zoo.artefact.preprocess import normalise, pixels
from zoo.base.errors import DataError, ImageError, UsageError, unknown_name
from zoo.base.files import sha256_file
from zoo.base.progress import track
from zoo.data.dataset import Dataset, Sample

if TYPE_CHECKING:
    from torch import nn

    from zoo.data.decoded import DecodedImages

__all__ = [
    "Answered",
    "Averages",
    "ClassMetrics",
    "accuracy",
    "averages",
    "calibration_error",
    "check_labels",
    "check_validation",
    "file_logits",
    "fit_temperature",
    "logits_of",
    "per_class",
    "rare_labels",
    "shared_logits",
    "torch_logits",
    "with_engine",
    "with_validation",
]

Logits = npt.NDArray[np.float32]
Classifier = Callable[[npt.NDArray[np.float32]], Logits]

_ROWS = 4096
"""Rows of logits that are looked at together: [N, K] of a large data set several times over would fill the memory."""

CALIBRATION_BINS = 15
"""As in Guo et al. 2017, table 1."""


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """How well one label is recognised. Fractions, not per cent."""

    label: str
    n: int
    """Images that have it."""
    precision: float
    """Share of the answers with this label that are right; 0 where there is no such answer."""
    recall: float
    """Share of its images that are recognised; 0 where there is no image."""
    f1: float
    """Harmonic mean of both."""


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Unweighted means over labels: each counts the same, however many images it has."""

    classes: int
    """Labels that have images; the others have no recall to average."""
    n: int
    """Images of these labels."""
    precision: float
    recall: float
    f1: float


def torch_logits(model: nn.Module, images: DecodedImages, *, batch_size: int = 128) -> Logits:
    """Logits float32 [N, K] of decoded images, from a torch model in evaluation mode, on the GPU if there is one.

    The model ends in the mode and on the device in which it was.
    """
    # What judges an ONNX file's answers does not wait seconds for torch.
    import torch

    from zoo.data.decoded import outputs
    from zoo.networks.registry import evaluating
    from zoo.training.loop.distributed import pick_device

    home, device = next(model.parameters()).device, pick_device()
    with evaluating(model.to(device)):
        parts = [part.float().cpu() for part in outputs(model, images.spec, images.in_order(batch_size), device)]
    model.to(home)
    return torch.cat(parts).numpy()


def shared_logits(model: nn.Module, samples: Sequence[Sample], spec: Input, *, batch_size: int = 128) -> Logits:
    """Logits float32 [N, K] of N images, in every process of a training; each decodes and computes its share.

    The batches are those that one process alone would compute, so that the logits are the same bit by bit where the
    processes compute alike. All processes call this together.

    Args:
        model: the same in all.
        samples: the same in all.
        spec: the network's input.
        batch_size: images at once.
    """
    from zoo.data.decoded import DecodedImages
    from zoo.training.loop.distributed import gather, join_world

    world = join_world()
    starts = range(0, len(samples), batch_size)[world.rows(-(-len(samples) // batch_size))]
    own = samples[starts.start : starts.stop]
    part = torch_logits(model, DecodedImages(own, spec), batch_size=batch_size) if len(starts) else None
    return np.concatenate([logits for logits in gather(part, world) if logits is not None])


def logits_of(classify: Classifier, samples: Sequence[Sample], spec: Input, *, batch_size: int = 64) -> Logits:
    """Logits float32 [N, K] from any function that maps inputs [B, C, H, W] to logits [B, K].

    Raises:
        ImageError: an image cannot be decoded, or is too elongated; names it.
    """
    starts = range(0, len(samples), batch_size)
    chunks = track(starts, total=len(starts), description="Evaluating")
    return np.concatenate([classify(_inputs(samples[start : start + batch_size], spec)) for start in chunks])


def _inputs(samples: Sequence[Sample], spec: Input) -> npt.NDArray[np.float32]:
    inputs = np.empty((len(samples), *spec.shape), dtype=np.float32)
    for sample, row in zip(samples, inputs, strict=True):
        try:
            normalise(pixels(sample.read(), spec), spec, out=row)
        except ImageError as error:
            raise type(error)(f"{sample.name}: {error}; leave it out") from error
    return inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class Answered:
    """What a file answers to N images, and what computed that."""

    logits: Logits
    """[N, K]."""
    card: Card
    digest: str
    """SHA-256 of the file."""
    engine: str
    """A name of zoo.artefact.engines.runtimes; `torch` for a checkpoint."""
    engine_reason: str
    """A sentence."""


def file_logits(path: Path, samples: Sequence[Sample], *, engine: str | None = None) -> Answered:
    """What an ONNX file answers, or a checkpoint, which needs torch.

    Args:
        path: the file.
        samples: N images.
        engine: of an ONNX file, see zoo.artefact.predictor.Predictor; a checkpoint has none but torch.

    Raises:
        UsageError: an engine that cannot be had.
        ArtefactError, CardError, CheckError: the file cannot be used.
        ImageError: an image cannot be used; names it.
    """
    if path.suffix != ".safetensors":
        predictor = Predictor(path, engine=engine)
        return Answered(
            logits=logits_of(predictor.logits, samples, predictor.card.use.input),
            card=predictor.card,
            digest=predictor.digest,
            engine=predictor.engine,
            engine_reason=predictor.engine_reason,
        )
    if engine is not None:
        raise UsageError(f"{path}: --engine {engine}: torch computes a checkpoint; name an ONNX file, or no engine")
    import torch

    from zoo.networks.checkpoint import load

    model, card = load(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)

    def classify(inputs: npt.NDArray[np.float32]) -> Logits:
        with torch.inference_mode():
            found: Logits = model(torch.from_numpy(inputs).to(device)).float().cpu().numpy()
        return found

    return Answered(
        logits=logits_of(classify, samples, card.use.input),
        card=card,
        digest=sha256_file(path),
        engine="torch",
        engine_reason="torch: a checkpoint",
    )


def accuracy(
    logits: Logits, labels: npt.NDArray[np.int64], *, dataset: str, split: str, engine: str | None = None
) -> Metrics:
    """Top-1 with its Wilson 95 % interval (scipy's), and top-5 where there are more than five labels.

    Args:
        logits: [N, K]; equal logits rank the earlier label first, as in serving.
        labels: [N], the true labels.
        dataset: name for the record.
        split: name for the record.
        engine: what computed the logits, for the record.
    """
    from scipy.stats import binomtest  # a second that training need not wait for

    ranks = _ranks(logits, labels)
    hits = int((ranks == 0).sum())
    interval = binomtest(hits, len(labels)).proportion_ci(confidence_level=0.95, method="wilson")
    top5 = float((ranks < 5).mean()) if logits.shape[1] > 5 else None
    return Metrics(
        dataset=dataset,
        split=split,
        n=len(labels),
        top1=hits / len(labels),
        low=float(interval.low),
        high=float(interval.high),
        top5=top5,
        engine=engine,
    )


def _ranks(logits: Logits, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many answers of each row come before the true one: int64 [N]. What is no number comes last."""
    ranks = np.empty(len(labels), dtype=np.int64)
    for start in range(0, len(labels), _ROWS):
        part = np.nan_to_num(logits[start : start + _ROWS], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        truth = labels[start : start + _ROWS, None]
        own = np.take_along_axis(part, truth, axis=1)
        earlier = (part == own) & (np.arange(part.shape[1]) < truth)
        ranks[start : start + _ROWS] = ((part > own) | earlier).sum(axis=1)
    return ranks


def per_class(logits: Logits, labels: npt.NDArray[np.int64], names: Sequence[str]) -> list[ClassMetrics]:
    """Precision, recall and F1 of every label (scikit-learn's), in the order of `names`.

    Args:
        logits: [N, K]; equal logits rank the earlier label first, as in serving.
        labels: [N], the true labels.
        names: of the K labels.
    """
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels, logits.argmax(axis=1), labels=np.arange(len(names)), zero_division=0.0
    )
    return [
        ClassMetrics(label=name, n=int(n), precision=float(precision), recall=float(recall), f1=float(f1))
        for name, precision, recall, f1, n in zip(names, *columns, strict=True)
    ]


def averages(rows: Sequence[ClassMetrics]) -> Averages | None:
    """Macro averages over the labels in `rows` that have images; None where none has."""
    present = [row for row in rows if row.n]
    if not present:
        return None
    return Averages(
        classes=len(present),
        n=sum(row.n for row in present),
        precision=sum(row.precision for row in present) / len(present),
        recall=sum(row.recall for row in present) / len(present),
        f1=sum(row.f1 for row in present) / len(present),
    )


def rare_labels(dataset: Dataset, names: Sequence[str] = (), *, thinned: Sequence[str] = ()) -> tuple[str, ...]:
    """The labels to set apart, in the data set's order.

    Args:
        dataset: whose labels they are.
        names: labels, or names of groups of labels. Where none is given: those of `thinned`; where there is none
            either: labels with fewer than half of the median number of training images.
        thinned: labels, or names of groups, whose training images were thinned; unknown ones are passed over, since
            the data may be others than those of the training.

    Raises:
        UsageError: one of `names` is neither a label nor a group; lists close matches.
    """
    members = {label: (label,) for label in dataset.labels} | dict(dataset.groups)
    for name in names:
        if name not in members:
            raise unknown_name(f"class or group of {dataset.name}", name, members)
    chosen = {label for name in names or thinned for label in members.get(name, ())}
    if not chosen:
        found = np.array([sample.label for sample in dataset.splits["train"]], dtype=np.int64)
        counts = np.bincount(found, minlength=len(dataset.labels))
        chosen = {label for label, count in zip(dataset.labels, counts, strict=True) if count < np.median(counts) / 2}
    return tuple(label for label in dataset.labels if label in chosen)


def calibration_error(probabilities: Logits, labels: npt.NDArray[np.int64], *, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error of the top answer (Guo et al. 2017, equation 5), a fraction.

    Args:
        probabilities: [N, K], after the temperature.
        labels: [N], the true labels.
        bins: of equal width over the confidences 0 to 1; each includes its upper end.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    places = np.ceil(confidence * bins).clip(1, bins).astype(np.int64) - 1
    # Per bin: |sum of hits - sum of confidences| is its size times |accuracy - mean confidence|.
    gaps = np.bincount(places, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def fit_temperature(logits: Logits, labels: npt.NDArray[np.int64]) -> float:
    """The temperature in [0.05, 20] of least negative log-likelihood on [N, K] (Guo et al. 2017, section 4.2).

    It is 1 where every answer is right: the likelihood then only says that no temperature is low enough.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if (logits.argmax(axis=1) == labels).all():
        return 1.0

    starts = range(0, len(labels), _ROWS)

    def likelihood(start: int, log_temperature: float) -> npt.NDArray[np.float64]:
        part, truth = logits[start : start + _ROWS], labels[start : start + _ROWS, None]
        scaled = part.astype(np.float64) / np.exp(log_temperature)
        found: npt.NDArray[np.float64] = np.take_along_axis(log_softmax(scaled, axis=1), truth, axis=1)[:, 0]
        return found

    def loss(log_temperature: float) -> float:
        return float(-np.concatenate([likelihood(start, log_temperature) for start in starts]).mean())

    best = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(best.x))


def check_labels(card: Card, dataset: Dataset) -> None:
    """Check that a data set's labels are the card's, in the same order.

    Raises:
        DataError: they differ.
    """
    if card.use.labels != dataset.labels:
        raise DataError(
            f"{card.name} knows the labels {list(card.use.labels)[:5]}, {dataset.name} has {list(dataset.labels)[:5]}; "
            "name the data it was trained on, or train it on this"
        )


def check_validation(card: Card, dataset: Dataset) -> None:
    """Check that a data set has validation images, by which what is made of a network is judged.

    Raises:
        DataError: they are training images there.
    """
    if "validation" not in dataset.splits:
        raise DataError(
            f"{card.name} was trained on the validation images of {dataset.name}, too, so none are left to measure on "
            f"what this would cost; do it with {card.refit_of or 'the artefact that was refitted'}, which has them"
        )


def with_validation(card: Card, logits: Logits, dataset: Dataset, *, engine: str) -> Card:
    """The card with what `logits` [N, K] on the validation split say: accuracy, temperature, reference for drift.

    Args:
        card: whose metrics on that split are replaced.
        logits: [N, K].
        dataset: with the card's labels.
        engine: what computed the logits.
    """
    check_labels(card, dataset)
    labels = np.array([sample.label for sample in dataset.splits["validation"]], dtype=np.int64)
    temperature = fit_temperature(logits, labels)
    probabilities = softmax(logits, temperature)
    counts = Counter(probabilities.argmax(axis=1).tolist())
    reference = Reference(
        mean_confidence=float(probabilities.max(axis=1).mean()),
        histogram={label: counts.get(index, 0) for index, label in enumerate(card.use.labels)},
    )
    others = tuple(entry for entry in card.inform.metrics if entry.split != "validation")
    card = dataclasses.replace(
        card,
        use=dataclasses.replace(card.use, temperature=temperature, reference=reference),
        inform=dataclasses.replace(card.inform, metrics=others),
    )
    return with_engine(card, logits, dataset, engine=engine)


def with_engine(card: Card, logits: Logits, dataset: Dataset, *, engine: str) -> Card:
    """The card with the accuracy of one more engine's `logits` [N, K] on the validation split."""
    labels = np.array([sample.label for sample in dataset.splits["validation"]], dtype=np.int64)
    metrics = accuracy(logits, labels, dataset=dataset.name, split="validation", engine=engine)
    # Validation before test, as tables have it; of one split the engine that was measured first.
    measured = sorted((*card.inform.metrics, metrics), key=lambda entry: entry.split != "validation")
    return dataclasses.replace(card, inform=dataclasses.replace(card.inform, metrics=tuple(measured)))
