"""Too little memory is told with what helps."""

from __future__ import annotations

import pytest
import torch

from zoo.base.errors import TrainingError
from zoo.training.loop.config import FitConfig
from zoo.training.loop.memory import enough_memory, memory_shortage


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "remedy"),
    [
        (64, 1, "--set train.accumulate=2 .now 1. .*, --batch-size 32 .now 64. needs less"),
        (6, 2, r"; --batch-size 3 .now 6. needs less"),
        (2, 1, "; a smaller model or image needs less"),
    ],
)
def test_a_shortage_names_what_needs_less(batch_size, accumulate, remedy):
    config = FitConfig(epochs=1, batch_size=batch_size, lr=0.1, accumulate=accumulate)
    with pytest.raises(TrainingError, match=f"flowers: too little memory .*{remedy}"), enough_memory("flowers", config):
        torch.empty(1 << 60)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee there"),
            "CUDA out of memory. Tried",
        ),
        (RuntimeError("CUDA error: out of memory"), "CUDA error: out of memory"),
        (MemoryError(), "MemoryError"),
        (RuntimeError("shapes do not match"), None),
        (ValueError("out of memory"), None),
    ],
)
def test_only_a_shortage_of_memory_is_one(error, told):
    found = memory_shortage(error)
    assert (found is None) if told is None else (found.startswith(told) and "\n" not in found)


def test_another_error_passes():
    config = FitConfig(epochs=1, batch_size=8, lr=0.1)
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("flowers", config):
        raise RuntimeError("shapes do not match")
