"""Too little memory, recognised in what torch and Python raise, and told in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zoo.base.errors import TrainingError
from zoo.training.loop.config import FitConfig

__all__ = ["enough_memory", "memory_shortage"]

_SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In what torch says in a plain RuntimeError."""


def memory_shortage(error: BaseException) -> str | None:
    """The first line of an error that says that memory is short; None for any other error."""
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if memory or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)):
        return str(error).partition("\n")[0] or type(error).__name__
    return None


@contextmanager
def enough_memory(name: str, config: FitConfig) -> Iterator[None]:
    """Say in a sentence that memory is short, and what needs less of it.

    Args:
        name: of what is trained.
        config: its settings.

    Raises:
        TrainingError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if (what := memory_shortage(error)) is None:
            raise
        raise TrainingError(f"{name}: too little memory ({what}); {_remedy(config)}") from error


def _remedy(config: FitConfig) -> str:
    size, pieces = config.batch_size, config.accumulate
    if not size:
        return "a smaller --batch-size than the one chosen by the number of images, like 4, needs less"
    smaller = f"--batch-size {size // 2} (now {size}) needs less" if size > 3 else "a smaller model or image needs less"
    if size < 2 * pieces * 2:
        return smaller
    return f"--set train.accumulate={2 * pieces} (now {pieces}) computes the same batch in smaller pieces, {smaller}"
