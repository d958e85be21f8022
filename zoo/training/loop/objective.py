"""What a training step minimises: the loss over labelled images, over unlabelled ones, and a pull to the start."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from zoo.base.errors import UsageError
from zoo.base.seeds import generator_for, seed_of
from zoo.data.augment.mix import mixes
from zoo.data.augment.pipeline import strong, weak
from zoo.data.decoded import DecodedImages
from zoo.training.loop.config import FitConfig
from zoo.training.loop.feeds import TrainingImages
from zoo.training.loop.losses import Loss
from zoo.training.loop.methods.l2sp import l2sp, starting_point
from zoo.training.loop.methods.semi_supervised import Unlabelled, fixmatch_loss, pseudo_label_loss, ramp_weight

__all__ = ["Objective", "Views"]

Views = tuple[torch.Tensor, torch.Tensor]
"""A weakly and a strongly varied view of unlabelled images, each float32 [M, C, H, W]."""


class Objective:
    """What a step minimises.

    Args:
        model: whose weights a penalty pulls.
        config: precision, and the strength of that pull.
        loss: over labelled images.
        custom: whether `loss` looks at the images themselves.
        device: where training runs.
    """

    def __init__(self, model: nn.Module, config: FitConfig, loss: Loss, *, custom: bool, device: torch.device) -> None:
        self.loss = loss
        self.needs_pictures = custom
        self._model = model
        self._config = config
        self._device = device
        self.half = config.precision == "bf16"
        """Whether it is computed in bf16 where torch.autocast finds that safe."""
        self._start: dict[str, torch.Tensor] = {}
        self._unlabelled: DecodedImages | None = None
        self._semi: Unlabelled | None = None

    def learn_from(self, unlabelled: DecodedImages | None, semi: Unlabelled) -> None:
        """Use unlabelled images too.

        Raises:
            UsageError: there are none, or settings that this does not go with.
        """
        if not unlabelled:
            raise UsageError("there are no unlabelled images to learn from; keep fewer labels (labels = 0.1)")
        if self._config.accumulate > 1 or mixes(self._config.augment):
            raise UsageError("[unlabelled] goes with train.accumulate = 1 and without MixUp or CutMix")
        self._unlabelled, self._semi, self.needs_pictures = unlabelled, semi, True

    def remember_start(self) -> None:
        """Take the present weights as what the penalty pulls to."""
        self._start = starting_point(self._model)

    def penalty(self) -> torch.Tensor | None:
        """The pull to the start, a scalar; None without one."""
        return l2sp(self._model, self._start, self._config.l2sp) if self._config.l2sp else None

    def views(self, pictures: TrainingImages, epoch: int, steps: int, first: int) -> Iterator[Views | None]:
        """This process's views of the unlabelled images of each step from `first` on; None without such images."""
        semi, images, seed = self._semi, self._unlabelled, self._config.seed
        if semi is None or images is None:
            yield from (None for _ in range(first, steps))
            return
        size = min(semi.ratio * self._config.batch_size, len(images))
        draw = random.Random(seed_of(seed, epoch, "unlabelled"))
        order: list[int] = []
        while len(order) < steps * size:
            order += draw.sample(range(len(images)), len(images))
        rows = pictures.world.rows(size)
        own = [order[step * size : (step + 1) * size][rows] for step in range(first, steps)]
        augment = self._config.augment
        for step, (stored, _) in enumerate(images.batches(own), start=first):
            mild, hard = (
                pictures.inputs(stored, config, generator_for(seed, epoch, step, kind), total=size, offset=rows.start)
                for kind, config in (("weak", weak(augment)), ("strong", strong(augment)))
            )
            yield mild, hard

    def __call__(
        self, network: nn.Module, inputs: Any, targets: torch.Tensor, extra: Views | None, progress: float
    ) -> torch.Tensor:
        """The loss of a batch, without the penalty: a scalar.

        Args:
            network: takes `inputs`.
            inputs: float32 [B, C, H, W], or the tensors at the cut.
            targets: int64 [B] or float32 [B, K].
            extra: of :meth:`views`.
            progress: share of training done, 0 to 1.
        """
        semi = self._semi
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self.half):
            if extra is None or semi is None:
                return self.loss(inputs, network(inputs).float(), targets)
            several = [inputs, *extra] if semi.method == "fixmatch" else [inputs, extra[0]]
            logits = network(torch.cat(several)).float().split([len(part) for part in several])
        if semi.method == "fixmatch":
            guessed, _ = fixmatch_loss(logits[1], logits[2], semi.threshold, temperature=semi.temperature)
        else:
            guessed, _ = pseudo_label_loss(logits[1], semi.threshold, temperature=semi.temperature)
        return self.loss(inputs, logits[0], targets) + ramp_weight(progress, semi) * guessed
