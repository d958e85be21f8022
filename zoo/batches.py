"""Decoded pictures in memory, and batches of them for training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from zoo.card import Input
from zoo.datasets.base import Sample
from zoo.errors import DataError, ImageError
from zoo.image import pixels, scale_and_shift
from zoo.machine import cores
from zoo.progress import track

__all__ = ["Images", "Normalise", "canvas"]

CACHE_BYTES = 2 << 30
"""Decoded training pictures are kept in memory up to this size; beyond it, worker processes decode them again."""


def canvas(spec: Input) -> Input:
    """The preprocessing of training pictures: the evaluation's, with the margin that its crop cuts off."""
    edge = spec.resize.edge
    return spec if edge is None else dataclasses.replace(spec, size=(edge, edge))


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Labelled pictures as uint8 [C, H, W], decoded as `spec` says and kept in memory where they fit."""

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
            yield from DataLoader(self, batch_sampler=order, num_workers=max(1, cores() - 1))  # type: ignore[arg-type]

    def in_order(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All pictures once, in their own order."""
        return self.batches(
            [range(start, min(start + batch_size, len(self))) for start in range(0, len(self), batch_size)]
        )

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


def _channels_first(sample: Sample, spec: Input) -> npt.NDArray[np.uint8]:
    try:
        return np.moveaxis(pixels(sample.read(), spec), -1, 0)
    except ImageError as error:
        raise DataError(f"{sample.name}: {error}") from error
