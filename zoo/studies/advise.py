"""Which way of training fits a data set and pretrained weights, decided by measured facts.

The rule is the usual two by two (Karpathy et al., CS231n lecture notes, "Transfer Learning"; Yosinski et al. 2014, "How
transferable are features in deep neural networks?"), with a third row for features that help nothing:

| the data are            | small                                       | large                                      |
|-------------------------|---------------------------------------------|--------------------------------------------|
| similar to pretraining  | `head`: the classifier alone                | `full`: all, early stages slowly; a large  |
|                         |                                             | transformer: `lora`                        |
| different               | `last-stages`: half of the stages; a        | `full`: all, early stages hardly slower    |
|                         | transformer: `lora`                         |                                            |
| unrelated               | `last-stages`; random weights: `scratch`    | `scratch`: from random weights             |

Small: fewer than SMALL_IMAGES training images, or fewer than SMALL_PER_CLASS of each class. Similarity is measured:
a logistic regression and k nearest neighbours on the frozen pooled features against k nearest neighbours on the pixels,
all on validation images. The test split is not read. Every threshold is a named constant with its reason.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional

from zoo.artefact.card import Input, Metrics
from zoo.base.errors import DataError
from zoo.data.augment.pipeline import Augment
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages
from zoo.networks.cutting.truncate import features_of
from zoo.networks.lora import adaptable
from zoo.networks.stages import Freezing, stages
from zoo.studies.probe import decoded, extract, fit_probe
from zoo.training.evaluate import accuracy
from zoo.training.loop.config import FitConfig
from zoo.training.recipe import LoraConfig, Run
from zoo.training.recipe_text import recipe_text

__all__ = ["Advice", "Facts", "advise", "decide", "measure", "recipe_of"]

SMALL_IMAGES = 1000
"""The size of VTAB-1k's training sets (Zhai et al. 2019, arXiv 1910.04867), its low-data regime: there full fine-tuning
of ViT-B/16 reaches 68.9 % on average and adapters 76.7 % (JieShibo/PETL-ViT)."""
SMALL_PER_CLASS = 10
"""With 4 images of each class, fine-tuning all of ResNet-50 on Pets loses 11 points to all images (82.2 % to 93.2 %,
thuml/Transfer-Learning-Library); with the 10 to 20 of each flower of Flowers-102 it beats a frozen network (ResNet-18,
96.2 % to 91.4 %, microsoft/robust-models-transfer)."""
HELP = 0.1
"""Features help if they remove more than this share of the errors of neighbours in pixels; random networks remove none.
A judgement, against the noise of a few hundred validation images."""
SIMILAR = 0.75
"""Data are similar if a linear classifier on frozen features goes at least so far from chance (0) to perfect (1).
Frozen ImageNet ResNets reach 0.89 to 0.91 on Pets and on Flowers, where fine-tuning everything adds 2 to 5 points
(microsoft/robust-models-transfer). Where exactly below that the border lies is a judgement."""
LARGE_TRANSFORMER = 20_000_000
"""Parameters above which LoRA beats fine-tuning everything on large data: ViT-Base 91.4 % to 88.1 %, but ViT-Tiny (5.7
million) 82.2 % to 86.4 % (open-edge-platform/geti, PR 3729)."""
IMBALANCE = 3.0
"""Images of the most frequent class per image of the rarest above which classes are weighted."""
STEPS = 500
"""Updates of a fine-tuning: big_vision's configs/transfer.py takes 500 for Pets."""
NEIGHBOURS = 5

_PIXELS = 16
"""Edge to which images are averaged down for neighbours in pixels."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was measured; all accuracies on validation images, as fractions."""

    images: int
    """Training images."""
    per_class: tuple[int, float, int]
    """Fewest, median and most training images of a class."""
    chance: float
    """Accuracy of always answering the most frequent class."""
    pixels: Metrics
    """Nearest neighbours of the images themselves."""
    neighbours: Metrics
    """Nearest neighbours in the frozen features."""
    probe: Metrics
    """Logistic regression on the frozen features."""
    parameters: int
    stages: int
    """Of the network, the classifier included; see zoo.networks.stages."""
    transformer: bool
    """Whether it has the linear layers that LoRA adapts by default."""
    random_weights: bool
    photographs: bool

    @property
    def imbalance(self) -> float:
        """Images of the most frequent class per image of the rarest."""
        return self.per_class[2] / self.per_class[0]

    @property
    def features(self) -> float:
        """The better accuracy on frozen features."""
        return max(self.neighbours.top1, self.probe.top1)

    @property
    def help(self) -> float:
        """Share of the errors of neighbours in pixels that frozen features remove; negative if they add some."""
        return (self.features - self.pixels.top1) / max(1 - self.pixels.top1, 1 / self.pixels.n)

    @property
    def reach(self) -> float:
        """How far the probe goes from chance (0) to perfect (1)."""
        return (self.probe.top1 - self.chance) / (1 - self.chance)

    @property
    def signal(self) -> bool:
        """Whether anything beats chance beyond its confidence interval."""
        return max(self.pixels.low, self.neighbours.low, self.probe.low) > self.chance


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A strategy, why, and the recipe keys that carry it out."""

    strategy: str
    """head, last-stages, lora, full or scratch."""
    size: str
    """small or large."""
    similarity: str
    """similar, different or unrelated."""
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    """What to look at before training anything."""
    run: Run


def advise(dataset: Dataset, model: nn.Module, spec: Input, run: Run) -> tuple[Facts, Advice]:
    """Measure and decide.

    Args:
        dataset: training and validation images.
        model: the network with its first weights; stays as it is.
        spec: the network's input.
        run: model, data and weights; the result's `run` is this one with a strategy.
    """
    facts = measure(dataset, model, spec, random_weights=run.weights == "none" and not run.start)
    return facts, decide(facts, run)


def measure(dataset: Dataset, model: nn.Module, spec: Input, *, random_weights: bool) -> Facts:
    """The facts that :func:`decide` looks at; one pass over training and validation images.

    Raises:
        DataError: a class without training images, or a validation split of one class only.
    """
    train, validation = decoded(dataset, spec)
    features = extract(features_of(model, ""), train, validation)
    probe = fit_probe(features, dataset)
    truth = features.validation_labels
    chance = max(Counter(truth.tolist()).values()) / len(truth)
    if chance == 1:
        raise DataError(f"{dataset.name}: all validation images are of one class, so nothing can be compared on them")

    def neighbours(known: npt.NDArray[np.float32], asked: npt.NDArray[np.float32]) -> Metrics:
        nearest = KNeighborsClassifier(min(NEIGHBOURS, len(known))).fit(known, features.train_labels)
        return accuracy(
            nearest.predict_proba(asked).astype(np.float32), truth, dataset=dataset.name, split="validation"
        )

    mean, spread = features.train.mean(axis=0), features.train.std(axis=0) + 1e-6
    counts = Counter(sample.label for sample in dataset.splits["train"])
    return Facts(
        images=len(dataset.splits["train"]),
        per_class=(min(counts.values()), statistics.median(counts.values()), max(counts.values())),
        chance=chance,
        pixels=neighbours(_pixels(train), _pixels(validation)),
        neighbours=neighbours((features.train - mean) / spread, (features.validation - mean) / spread),
        probe=probe.validation,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        stages=len(stages(model)),
        transformer=adaptable(model, LoraConfig().targets),
        random_weights=random_weights,
        photographs=dataset.photographs,
    )


def decide(facts: Facts, run: Run) -> Advice:
    """The strategy for these facts, as the table above says."""
    small = facts.images < SMALL_IMAGES or facts.per_class[1] < SMALL_PER_CLASS
    size = "small" if small else "large"
    helped = facts.signal and facts.help > HELP
    similarity = "unrelated" if not helped else "similar" if facts.reach >= SIMILAR else "different"
    strategy = _strategy(size, similarity, facts)
    balanced = facts.imbalance > IMBALANCE
    return Advice(
        strategy=strategy,
        size=size,
        similarity=similarity,
        reasons=(_about_size(facts, size), *_about_similarity(facts, similarity), _about_training(facts, strategy)),
        warnings=_warnings(facts, similarity),
        run=_run(run, strategy, similarity, facts, small=small, balanced=balanced),
    )


def recipe_of(advice: Advice, facts: Facts, *, command: str) -> bytes:
    """The recipe as a TOML file that `pocketzoo train --recipe` takes.

    Args:
        advice: what to write.
        facts: for the comment on top.
        command: that trains it.
    """
    run = advice.run
    title = [
        f"Reproduces: nothing; what `pocketzoo advise` recommends for {run.data} and {run.model}: {advice.strategy}.",
        f"Command:    {command}",
        f"Expected:   to be compared with {facts.features:.1%}, what frozen features reach on the {facts.probe.n} "
        "validation images.",
    ]
    return recipe_text([run], title)


def _strategy(size: str, similarity: str, facts: Facts) -> str:
    if facts.random_weights or (similarity == "unrelated" and size == "large"):
        return "scratch"
    if size == "large":
        big = facts.transformer and facts.parameters > LARGE_TRANSFORMER
        return "lora" if similarity == "similar" and big else "full"
    if similarity == "similar":
        return "head"
    return "lora" if similarity == "different" and facts.transformer else "last-stages"


def _about_size(facts: Facts, size: str) -> str:
    few, median, most = facts.per_class
    return (
        f"{size}: {facts.images} training images, {median:g} of a class in the middle ({few} to {most}); small is "
        f"under {SMALL_IMAGES} images or under {SMALL_PER_CLASS} of a class"
    )


def _about_similarity(facts: Facts, similarity: str) -> tuple[str, ...]:
    change = f"remove {facts.help:.0%} of" if facts.help >= 0 else f"add {-facts.help:.0%} to"
    return (
        f"chance is {facts.chance:.1%} on {facts.probe.n} validation images; {NEIGHBOURS} nearest neighbours reach "
        f"{facts.pixels.top1:.1%} in pixels and {facts.neighbours.top1:.1%} in frozen features, "
        f"a logistic regression on these {facts.probe.top1:.1%}",
        f"{similarity}: frozen features {change} the errors of neighbours in pixels (they help if they remove more "
        f"than {HELP:.0%}), and the regression goes {facts.reach:.0%} of the way from chance to perfect (similar from "
        f"{SIMILAR:.0%})",
    )


def _about_training(facts: Facts, strategy: str) -> str:
    reasons = {
        "head": "the features separate the classes already, and few images would spoil them: train the classifier "
        "alone (`pocketzoo probe` does the same in closed form, in seconds)",
        "last-stages": "early stages are general and few images cannot improve them; the later ones are of another "
        "subject: train these, with BatchNorm as it is",
        "lora": "a transformer: low-rank corrections adapt it with little that could overfit",
        "full": "there are images enough to adapt every stage, the early ones more slowly than the late ones",
        "scratch": "the first weights are random, so there is nothing to keep"
        if facts.random_weights
        else "what the weights were trained for is of no use here, and there are images enough to begin anew",
    }
    return f"{strategy}: {reasons[strategy]}"


def _warnings(facts: Facts, similarity: str) -> tuple[str, ...]:
    found = []
    if not facts.signal:
        found.append(
            "nothing beats answering the most frequent class: look at the labels and at the images before training"
        )
    if facts.random_weights:
        found.append("pretrained weights usually need a tenth of the images and time: --weights pretrained or a file")
    elif similarity == "unrelated" and facts.images < SMALL_IMAGES:
        found.append("these weights help nothing here and there are few images: look for other weights or more images")
    if facts.imbalance > IMBALANCE:
        found.append(
            f"imbalance: the most frequent class has {facts.imbalance:.1f} times the images of the rarest (over "
            f"{IMBALANCE:g}), so the recipe weights the classes; judge by the accuracy of each class, not by top-1"
        )
    return tuple(found)


def _run(run: Run, strategy: str, similarity: str, facts: Facts, *, small: bool, balanced: bool) -> Run:
    """The run with what the strategy needs."""
    # On flowers102 (similar, 1,019 images) three epochs with frozen statistics come to 90.9 %, with updated ones to
    # 83.3 (recipe ablate).
    norm = "freeze" if strategy != "scratch" and (small or similarity == "similar") else "update"
    batch = FitConfig(batch_size=0, freeze=Freezing(norm=norm)).for_images(facts.images).batch_size
    epochs = math.ceil((6 if strategy == "scratch" else 1) * STEPS * batch / facts.images)
    common: dict[str, Any] = {
        "epochs": min(max(epochs, 5), 100 if strategy == "scratch" else 30),
        "batch_size": batch,
        "seed": run.train.seed,
        "augment": _augment(facts, strategy),
        "class_weights": "balanced" if balanced else "none",
    }
    changes: dict[str, dict[str, Any]] = {
        # A new head on frozen features can learn fast: nothing that is worth keeping is behind it. A few kept views of
        # each image make an epoch as fast as one over numbers.
        "head": {"freeze": Freezing(stages=1), "lr": 3e-3, "label_smoothing": 0.1, "views": 3},
        "last-stages": {
            "freeze": Freezing(stages=max(2, math.ceil(facts.stages / 2)), norm=norm),
            "lr": 3e-4,
            "head_factor": 10.0,
            "label_smoothing": 0.1,
        },
        # LoRA takes five to ten times the rate of fine-tuning everything (bwconrad/vit-finetune: 0.05 to 0.01).
        "lora": {"lr": 2e-3, "label_smoothing": 0.1},
        "full": {
            "freeze": Freezing(norm=norm),
            "lr": 3e-4,
            "head_factor": 10.0,
            "layer_decay": 0.75 if similarity == "similar" else 0.9,
        },
        "scratch": {"lr": 1e-3 if facts.transformer else 3e-3, "warmup": 0.1},
    }
    return dataclasses.replace(
        run,
        name=f"{run.artefact}-{strategy}",
        weights="none" if strategy == "scratch" else run.weights,
        lora=LoraConfig() if strategy == "lora" else None,
        train=FitConfig(**common, **changes[strategy]),
    )


def _augment(facts: Facts, strategy: str) -> Augment:
    if not facts.photographs:
        return Augment(area=(0.9, 1.2), aspect=1.1, rotate=8.0, shift=0.05)
    low = 0.25 if strategy == "scratch" else 0.4
    return Augment(area=(low, 1.0), aspect=1.33, flip=True, padding="border")


def _pixels(images: DecodedImages) -> npt.NDArray[np.float32]:
    """Images averaged down to 16 x 16: float32 [N, C * 256]."""
    edge = min(_PIXELS, *images.spec.size)
    parts = [functional.adaptive_avg_pool2d(part.float(), edge).flatten(1) for part, _ in images.in_order(256)]
    found: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return found
