"""Seeds of what is random in training: each depends on the run's seed and the place alone, so that runs can resume."""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator_for", "seed_of"]


def seed_of(*place: int | str) -> int:
    """A seed in [0, 2 ** 56) for a place like (seed, epoch, step, "augment")."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, place)).encode()).digest()[:7], "big")


def generator_for(*place: int | str) -> torch.Generator:
    """A generator on the CPU, seeded by :func:`seed_of`."""
    return torch.Generator().manual_seed(seed_of(*place))
