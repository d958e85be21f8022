"""How to train: the settings of the training loop, and the loss and the optimizer that they ask for."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import nn

from zoo.base.errors import UsageError
from zoo.data.augment.pipeline import Augment
from zoo.networks.stages import Freezing, stages
from zoo.training.loop.losses import Loss, class_weights, cross_entropy, focal
from zoo.training.loop.optim import ladder, make_optimizer

__all__ = ["FitConfig", "loss_of", "optimizer_of"]

_BATCHES = (8, 16, 32, 64)
_LEAST_WITH_NORM = 16
_STEPS = 50


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast to train what."""

    epochs: int = 10
    batch_size: int = 64
    """Images per step; 0: 8, 16, 32 or 64, the most that leave 50 steps an epoch, as few images need every step; with
    `freeze.norm = "update"` at least 16, whose variance BatchNorm takes for that of all."""
    accumulate: int = 1
    """Each batch is computed in so many pieces, to save memory; their gradients add up to the batch's.
    BatchNorm that is not frozen sees the pieces, not the batch."""
    freeze: Freezing = field(default_factory=Freezing)
    """Which layers are trained, and what BatchNorm does."""
    optimizer: str = "adamw"
    lr: float = 1e-3
    """Peak learning rate."""
    head_factor: float = 1.0
    """The classifier learns so many times faster than the rest; for a new head on pretrained features."""
    layer_decay: float = 1.0
    """Each stage before the classifier learns by this factor slower than the one after it."""
    rates: tuple[float, ...] = ()
    """Factors of the rate of the classifier, the stage before it, and so on; the last one holds for all before."""
    schedule: str = "one-cycle"
    """constant, cosine, one-cycle, plateau (a tenth whenever the validation loss has not fallen for `patience` epochs)
    or step (a tenth after each third)."""
    warmup: float = 0.1
    """Share of training in which the rate rises."""
    patience: int = 3
    """Of the schedule `plateau`, in epochs."""
    weight_decay: float | None = None
    """None: what suits the optimizer, see zoo.training.loop.optim.WEIGHT_DECAY."""
    l2sp: float = 0.0
    """Strength of a pull to the weights that training starts from; see zoo.training.loop.methods.l2sp."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: no limit."""
    ema: float = 0.0
    """Decay of an average of the weights, which is then what is validated and kept; 0: none."""
    keep: str = "best"
    """best: the weights of the epoch that validates best, whose accuracy there is then the largest of several; last:
    those after the last epoch."""
    stop_after: int = 0
    """End the training when so many validations on end were no better than the best one; 0: never. For rates that do
    not fall (`constant`, `plateau`): under the others the last epochs are the best."""
    loss: str = "cross-entropy"
    """cross-entropy or focal."""
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weights: str = "none"
    """`none`, or `balanced`: inverse to the classes' frequency in the training images."""
    sampler: str = "shuffled"
    """`shuffled`, or `balanced`: every class equally often."""
    seed: int = 0
    augment: Augment = field(default_factory=Augment)
    views: int = 0
    """What frozen layers make of each training image is computed for so many augmented views and kept; 0: images
    are varied anew in each epoch, and only images without augmentation are kept."""
    precision: str = "auto"
    """float32, bf16 (mixed precision), or auto: bf16 on GPUs that have it, and on processors that have it if the first
    batches show that it is faster."""
    compile: bool = False
    """Train through torch.compile; pays for long trainings on a GPU."""

    def __post_init__(self) -> None:
        for name, low in (
            ("epochs", 1),
            ("batch_size", 0),
            ("accumulate", 1),
            ("patience", 1),
            ("views", 0),
            ("stop_after", 0),
        ):
            if getattr(self, name) < low:
                raise UsageError(f"train.{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("lr", "head_factor", "layer_decay"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"train.{name} must be a positive number, got {getattr(self, name)}")
        for name in ("weight_decay", "l2sp", "clip", "focal_gamma"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise UsageError(f"train.{name} must be 0 or a positive number, got {getattr(self, name)}")
        if self.stop_after and self.keep == "last":
            raise UsageError("train.stop_after keeps the best epoch, train.keep = 'last' the last; give one of them")
        smallest = self.batch_size or _BATCHES[0]
        if self.accumulate > smallest:
            raise UsageError(f"train.accumulate = {self.accumulate} pieces of a batch of {smallest} are too many")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"train.seed must be a whole number from 0 to 2^63 - 1, got {self.seed}")
        if not 0 <= self.ema < 1:
            raise UsageError(f"train.ema must be a decay in (0, 1) like 0.999, or 0 for none; got {self.ema}")
        for name, known in (
            ("keep", ("best", "last")),
            ("loss", ("cross-entropy", "focal")),
            ("class_weights", ("none", "balanced")),
            ("sampler", ("shuffled", "balanced")),
            ("precision", ("auto", "bf16", "float32")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"train.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def for_images(self, count: int) -> FitConfig:
        """With a batch size that suits `count` training images, where it is left open."""
        if self.batch_size:
            return self
        least = _LEAST_WITH_NORM if self.freeze.norm == "update" else _BATCHES[0]
        suitable = [size for size in _BATCHES if size * _STEPS <= count]
        return dataclasses.replace(self, batch_size=max([least, *suitable]))


def loss_of(config: FitConfig, labels: torch.Tensor, classes: int) -> Loss:
    """The loss that a configuration asks for.

    Args:
        config: its `loss`, `focal_gamma`, `label_smoothing` and `class_weights`.
        labels: int64 [N], of the training images; what class weights are computed from.
        classes: K.
    """
    weights = class_weights(labels, classes) if config.class_weights == "balanced" else None
    if config.loss == "focal":
        return focal(config.focal_gamma, config.label_smoothing, weights)
    return cross_entropy(config.label_smoothing, weights)


def optimizer_of(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """The optimizer of everything in `model` that requires gradients, with the rates of its stages."""
    factors = ladder(stages(model), head_factor=config.head_factor, layer_decay=config.layer_decay, rates=config.rates)
    return make_optimizer(config.optimizer, model, lr=config.lr, weight_decay=config.weight_decay, factors=factors)
