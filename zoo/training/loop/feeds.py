"""Where a training step's inputs come from: whole images, or what the frozen part of a network made of them once.

`B` is the batch size, `C`, `H`, `W` colours, height and width of the input, `K` the number of labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from zoo.artefact.card import Input
from zoo.base.seeds import generator_for
from zoo.data.augment.mix import mix, mixes
from zoo.data.augment.pipeline import Augment, augment
from zoo.data.decoded import DecodedImages, Normalise, outputs
from zoo.networks.cutting.cut import Cut, CutError, cut_bytes, cut_network
from zoo.training.loop.distributed import World, gather, interleaved
from zoo.training.loop.methods.norms import even_chunks

__all__ = ["CutFeed", "Feed", "TrainingImages", "WholeFeed", "cut_feed"]

_CHUNK = 64
_MOST_BYTES = 2 << 30
"""Of what the frozen layers make of the images. Not what the machine has: computing it anew rounds otherwise, so a run
would depend on it."""


@dataclass(frozen=True)
class TrainingImages:
    """What a run trains and validates on, and how its images become inputs."""

    train: DecodedImages
    validation: DecodedImages
    spec: Input
    augment: Augment
    classes: int
    seed: int
    world: World
    memory_format: torch.memory_format

    def inputs(
        self, images: torch.Tensor, config: Augment, generator: torch.Generator, *, total: int, offset: int
    ) -> torch.Tensor:
        """Varied and normalised: uint8 [B, C, H', W'] to float32 [B, C, H, W] on the device."""
        varied = augment(images.to(self.world.device), config, self.spec.size, generator, total=total, offset=offset)
        prepared = Normalise(self.spec, self.world.device)(varied)
        return prepared.contiguous(memory_format=self.memory_format)


class Feed(Protocol):
    """Inputs of the training steps and the network that takes them."""

    network: nn.Module

    def batches(self, epoch: int, chunks: Sequence[Sequence[int]], first: int) -> Iterator[tuple[Any, torch.Tensor]]:
        """This process's rows of `chunks[first:]`: what `network` takes, and int64 [B] or float32 [B, K] targets."""

    def validation_logits(self, most: int | None = None) -> npt.NDArray[np.float32]:
        """Logits [N, K] of the validation images, or of the first `most`, in every process."""


class WholeFeed:
    """Every image goes through the whole network at each step."""

    def __init__(self, model: nn.Module, network: nn.Module, pictures: TrainingImages) -> None:
        self.model = model
        self.network = network
        self.pictures = pictures

    def batches(
        self, epoch: int, chunks: Sequence[Sequence[int]], first: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Inputs [B, C, H, W] and targets; what is random depends on (seed, epoch, step) alone."""
        pictures, mixed = self.pictures, mixes(self.pictures.augment)
        rows = [pictures.world.rows(len(chunk)) for chunk in chunks]
        # An image's partner in MixUp may be another process's, so each process varies the whole batch then.
        own = [chunk if mixed else chunk[part] for chunk, part in zip(chunks, rows, strict=True)]
        for step, (images, labels) in enumerate(pictures.train.batches(own[first:]), start=first):
            generator = generator_for(pictures.seed, epoch, step, "augment")
            offset = 0 if mixed else rows[step].start
            inputs = pictures.inputs(images, pictures.augment, generator, total=len(chunks[step]), offset=offset)
            targets = labels.to(inputs.device)
            if mixed:
                inputs, targets = mix(inputs, targets, pictures.classes, pictures.augment, generator)
                yield inputs[rows[step]], targets[rows[step]]
            else:
                yield inputs, targets

    def validation_logits(self, most: int | None = None) -> npt.NDArray[np.float32]:
        """Each process computes every n-th batch."""
        images, world = self.pictures.validation, self.pictures.world
        chunks = even_chunks(range(len(images))[:most], 2 * _CHUNK)
        own = images.batches(interleaved(chunks, world))
        self.model.eval()
        found = [part.float().cpu().numpy() for part in outputs(self.model, images.spec, own, world.device)]
        rounds = itertools.zip_longest(*gather(found, world))
        return np.concatenate([part for parts in rounds for part in parts if part is not None])


class CutFeed:
    """The frozen part has run once; a step begins where the trained part does."""

    def __init__(
        self,
        model: nn.Module,
        parts: Cut,
        views: Sequence[tuple[torch.Tensor, ...]],
        validation: tuple[torch.Tensor, ...],
        labels: torch.Tensor,
        device: torch.device,
    ) -> None:
        self.model = model
        self.network = parts.rest
        self._views = views
        self._validation = validation
        self._labels = labels
        self._device = device

    def batches(
        self, epoch: int, chunks: Sequence[Sequence[int]], first: int
    ) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
        """The tensors at the cut, and labels [B]; epochs take the views in turn."""
        view = self._views[epoch % len(self._views)]
        for chunk in chunks[first:]:
            index = list(chunk)
            yield tuple(part[index].to(self._device) for part in view), self._labels[index].to(self._device)

    def validation_logits(self, most: int | None = None) -> npt.NDArray[np.float32]:
        """From the cut on."""
        self.model.eval()
        chunks = even_chunks(range(len(self._validation[0]))[:most], 2 * _CHUNK)
        with torch.inference_mode():
            parts = [
                self.network(tuple(part[chunk[0] : chunk[-1] + 1].to(self._device) for part in self._validation))
                for chunk in chunks
            ]
        return torch.cat(parts).float().cpu().numpy()


def cut_feed(
    model: nn.Module, trained: set[str], live: set[str], pictures: TrainingImages, *, views: int, epochs: int
) -> CutFeed | str:
    """Compute the frozen part of a network once, if that is possible and pays.

    Args:
        model: in training mode, frozen layers as in evaluation.
        trained: names of the parameters that learn.
        live: names of the BatchNorm layers whose statistics move.
        pictures: what to train and validate on.
        views: how many augmented views of each training image to keep; 0: augmentation is drawn anew each epoch,
            so there is nothing to keep unless there is none.
        epochs: how often they will be used.

    Returns:
        The feed, or why there is none.
    """
    count = 1 if pictures.augment.plain else views
    if mixes(pictures.augment):
        return "MixUp and CutMix blend images anew at each step"
    if not count:
        return "augmentation is drawn anew in each epoch; train.views = K keeps K views of each image instead"
    if epochs <= count:
        return f"{epochs} epoch(s) would not use {count} view(s) twice"
    if pictures.world.size > 1:
        return "several processes train together"
    device = pictures.world.device
    example = torch.zeros(2, *pictures.spec.shape, device=device)
    try:
        parts = cut_network(model, trained, example, live=live)
    except CutError as error:
        return str(error)
    if not parts.worthwhile:
        return "the layers that are frozen from the first on are less than a tenth of the work"
    size = cut_bytes(parts, example) * (len(pictures.train) * count + len(pictures.validation))
    if size > _MOST_BYTES:
        return f"what the frozen layers make of the images takes {size / 2**30:.1f} GiB"
    kept = [_frozen_views(parts.frozen, pictures, view) for view in range(count)]
    validation = _frozen_validation(parts.frozen, pictures)
    return CutFeed(model, parts, kept, validation, pictures.train.labels, device)


def _frozen_views(frozen: nn.Module, pictures: TrainingImages, view: int) -> tuple[torch.Tensor, ...]:
    chunks = even_chunks(range(len(pictures.train)), _CHUNK)
    parts = []
    with torch.no_grad():
        for index, (images, _) in enumerate(pictures.train.batches(chunks)):
            generator = generator_for(pictures.seed, view, index, "view")
            inputs = pictures.inputs(images, pictures.augment, generator, total=len(images), offset=0)
            parts.append(tuple(part.cpu() for part in frozen(inputs)))
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))


def _frozen_validation(frozen: nn.Module, pictures: TrainingImages) -> tuple[torch.Tensor, ...]:
    images = pictures.validation
    found = outputs(frozen, images.spec, images.in_order(_CHUNK), pictures.world.device)
    parts = [tuple(part.cpu() for part in values) for values in found]
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))
