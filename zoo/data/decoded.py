"""Decoded images in memory, and batches of them for training."""

from __future__ import annotations

import dataclasses
import itertools
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
from zoo.base.machine import cores
from zoo.base.progress import track
from zoo.data.dataset import Sample

__all__ = ["SAMPLERS", "DecodedImages", "Normalise", "canvas", "epoch_order", "outputs"]

CACHE_BYTES = 2 << 30
"""Decoded training images are kept in memory up to this size; beyond it, threads decode them again."""

_AHEAD = 3
"""Batches decoded in advance."""

SAMPLERS = ("shuffled", "balanced")
"""Every image once, in random order; or as many draws with replacement, each class as likely as any other."""


def canvas(spec: Input) -> Input:
    """The preprocessing of training images: the evaluation's, with the margin that its crop cuts off."""
    edge = spec.resize.edge
    return spec if edge is None else dataclasses.replace(spec, size=(edge, edge))


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
    """Labelled images as uint8 [C, H, W], decoded as `spec` says and kept in memory where they fit."""

    def __init__(self, samples: Sequence[Sample], spec: Input, *, cache_bytes: int = CACHE_BYTES) -> None:
        self.samples = samples
        self.spec = spec
        self.labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        self._memory: torch.Tensor | None = None
        if len(samples) * spec.channels * spec.size[0] * spec.size[1] <= cache_bytes:
            self._memory = torch.from_numpy(self._decode_all())

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        if self._memory is not None:
            return self._memory[index], int(self.labels[index])
        array = _channels_first(self.samples[index], self.spec)
        # A copy even where the order of the axes is right already: Pillow's memory is read-only.
        return torch.from_numpy(np.array(array, order="C")), int(self.labels[index])

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Batches (uint8 [B, C, H, W], int64 [B]) of the indices in `order`."""
        if self._memory is not None:
            for indices in order:
                yield self._memory[list(indices)], self.labels[list(indices)]
        else:
            yield from self._decoded_ahead(order)

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

    def _decode_all(self) -> npt.NDArray[np.uint8]:
        with ThreadPoolExecutor(max_workers=cores()) as pool:
            decoded = track(
                pool.map(lambda sample: _channels_first(sample, self.spec), self.samples),
                total=len(self.samples),
                description="Decoding",
            )
            return np.stack(list(decoded))


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
