"""Decoded images in memory, and batches of them for training."""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import Dataset

from zoo.artefact.card import Input
from zoo.artefact.preprocess import pixels, scale_and_shift
from zoo.base.errors import DataError, ImageError, unknown_name
from zoo.base.machine import available_memory, cores
from zoo.data.dataset import Sample

__all__ = ["SAMPLERS", "DecodedImages", "Normalise", "canvas", "epoch_order", "outputs"]

_LEFT = 0.25
"""The share of the memory which is free at first that decoded images leave to everything else."""
_CHECK = 256
"""Images that are kept between two looks at how much memory is free."""

_AHEAD = 3
"""Batches decoded in advance."""

SAMPLERS = ("shuffled", "balanced")
"""Every image once, in random order; or as many draws with replacement, each class as likely as any other."""


def canvas(spec: Input) -> Input:
    """The preprocessing of training images: the evaluation's, with the margin that its crop cuts off."""
    return dataclasses.replace(spec, size=spec.canvas)


def epoch_order(labels: torch.Tensor, *, sampler: str, generator: torch.Generator) -> list[int]:
    """The images of one epoch, as indices.

    Args:
        labels: int64 [N], of the training images.
        sampler: one of SAMPLERS.
        generator: the only source of randomness; on the CPU.

    Returns:
        N indices: with `balanced`, an image of a rare class may come several times and one of a common class not at
        all, so that an epoch stays as long as it is.

    Raises:
        UsageError: unknown sampler.
    """
    if sampler == "shuffled":
        return list(torch.randperm(len(labels), generator=generator).tolist())
    if sampler == "balanced":
        chances = 1 / torch.bincount(labels).double()[labels]  # [N]
        return list(torch.multinomial(chances, len(labels), replacement=True, generator=generator).tolist())
    raise unknown_name("sampler", sampler, SAMPLERS)


class DecodedImages(Dataset[tuple[torch.Tensor, int]]):
    """Labelled images as uint8 [C, H, W], decoded as `spec` says.

    Each is decoded when it is first asked for, and kept in memory if the machine has room for it; the others are
    decoded anew each time.
    """

    def __init__(self, samples: Sequence[Sample], spec: Input, *, cache_bytes: int | None = None) -> None:
        self.samples = samples
        self.spec = spec
        self.labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        free = available_memory()
        room = int(free * (1 - _LEFT)) if cache_bytes is None else cache_bytes
        shape = (spec.channels, *spec.size)
        most = min(len(samples), room // math.prod(shape))
        # The system gives the memory as images come, so that others who take some meanwhile are noticed.
        self._memory = torch.empty((most, *shape), dtype=torch.uint8)
        self._kept = bytearray(most)
        self._missing = len(samples)
        self._full = False
        self._least_free = int(free * _LEFT) if cache_bytes is None else 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = int(self.labels[index])
        if index < len(self._kept) and self._kept[index]:
            return self._memory[index], label
        # A copy even where the order of the axes is right already: Pillow's memory is read-only.
        image = torch.from_numpy(np.array(_channels_first(self.samples[index], self.spec), order="C"))
        self._keep(index, image)
        return image, label

    def _keep(self, index: int, image: torch.Tensor) -> None:
        if self._full or index >= len(self._kept):
            return
        self._memory[index] = image
        with self._lock:
            self._missing -= not self._kept[index]
            self._kept[index] = 1
            if self._missing % _CHECK == 0:
                self._full = available_memory() < self._least_free

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches (uint8 [B, C, H, W], int64 [B]) of the indices in `order`."""
        if self._missing:
            yield from self._decoded_ahead(order)
        else:
            for indices in order:
                yield self._memory[list(indices)], self.labels[list(indices)]

    def in_order(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images once, in their own order."""
        return self.batches(
            [range(start, min(start + batch_size, len(self))) for start in range(0, len(self), batch_size)]
        )

    def _decoded_ahead(self, order: Iterable[Sequence[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches that are decoded while the ones before them are used.

        Threads, not processes: Pillow works without Python's lock, and there is nothing to start and nothing to copy.
        """
        pool = ThreadPoolExecutor(max_workers=cores(), thread_name_prefix="decode")
        waiting: deque[list[Future[tuple[torch.Tensor, int]]]] = deque()
        chunks = iter(order)
        try:
            while True:
                for indices in itertools.islice(chunks, _AHEAD + 1 - len(waiting)):
                    waiting.append([pool.submit(self.__getitem__, index) for index in indices])
                if not waiting:
                    return
                images, labels = zip(*(future.result() for future in waiting.popleft()), strict=True)
                yield torch.stack(images), torch.tensor(labels, dtype=torch.int64)
        finally:
            pool.shutdown(cancel_futures=True)


class Normalise:
    """The card's normalisation on tensors: float32 [B, C, H, W] in 0..255 to network input."""

    def __init__(self, spec: Input, device: torch.device) -> None:
        factor, offset = scale_and_shift(spec)
        self._factor = torch.from_numpy(factor).view(-1, 1, 1).to(device)
        self._offset = torch.from_numpy(offset).view(-1, 1, 1).to(device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The normalised images, on their own device."""
        return images.float() * self._factor + self._offset


@torch.inference_mode()
def outputs(
    network: nn.Module, spec: Input, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], device: torch.device
) -> Iterator[Any]:
    """What a network makes of each batch of images, without gradients and in the mode that it is in.

    Args:
        network: on `device`; gets float32 [B, C, H, W].
        spec: its input.
        batches: of :class:`DecodedImages` decoded as `spec` says; the labels are not looked at.
        device: where to compute.
    """
    prepare = Normalise(spec, device)
    for images, _ in batches:
        yield network(prepare(images.to(device)))


def _channels_first(sample: Sample, spec: Input) -> npt.NDArray[np.uint8]:
    try:
        return np.moveaxis(pixels(sample.read(), spec), -1, 0)
    except ImageError as error:
        raise DataError(f"{sample.name}: {error}") from error
