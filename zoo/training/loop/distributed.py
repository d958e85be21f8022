"""Several processes that train one network together, started by `torchrun`; one process is a world of size 1.

`torchrun --nproc-per-node 2 -m zoo.main train ...` sets RANK, WORLD_SIZE, LOCAL_RANK and the address; see
https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import atexit
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed

from zoo.base.errors import TrainingError, UsageError
from zoo.base.files import write_bytes

__all__ = [
    "World",
    "barrier",
    "check_alone",
    "check_shared",
    "first_decides",
    "gather",
    "interleaved",
    "join_world",
    "others_alive",
    "pick_device",
]

T = TypeVar("T")

_PATIENCE = timedelta(hours=2)
"""How long a process waits for another. What takes long is shared, but for what one does alone (the first process
checks the images of a folder, others wait for its answer) the ten minutes of NCCL are too few with a million images.
A process that ended is noticed at once, however long this is: torchrun ends the others.
"""


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and talks."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's consecutive share of `count` rows; shares differ by at most one row."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)


def join_world() -> World:
    """The processes that `torchrun` started with this one, or this one alone; on its NVIDIA GPU if there is one."""
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local)
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if size > 1 and not distributed.is_initialized():
        distributed.init_process_group(
            "nccl" if cuda else "gloo", timeout=_PATIENCE, device_id=device if cuda else None
        )
        atexit.register(_leave)
    return World(distributed.get_rank() if size > 1 else 0, size, device)


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def pick_device() -> torch.device:
    """The first NVIDIA GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def barrier(world: World) -> None:
    """Wait until every process is here."""
    if world.size > 1:
        distributed.barrier()


def gather(part: Any, world: World) -> list[Any]:
    """The `part` of every process, in the order of their ranks."""
    if world.size == 1:
        return [part]
    parts: list[Any] = [None] * world.size
    distributed.all_gather_object(parts, part)
    return parts


def first_decides(decide: Callable[[], T], world: World) -> T:
    """What `decide` returns in the first process, in all of them: files may change between two looks."""
    answer: list[Any] = [decide() if world.first else None]
    if world.size > 1:
        distributed.broadcast_object_list(answer, src=0)
    decided: T = answer[0]
    return decided


def check_shared(folder: Path, world: World) -> None:
    """Check that a file which the first process writes is there for all: they read their start and their state from it.

    Args:
        folder: where the first process writes; made if it is not there.
        world: the processes; one alone has nothing to check.

    Raises:
        UsageError: on some machine it is another folder; raised in every process, so that none waits for another.
        ArtefactError: the first process cannot write there.
    """
    if world.size == 1:
        return

    def leave_mark() -> str:
        # A new name each time: a network's file system may remember for a while that an old one was not there.
        name = f".shared-{uuid.uuid4().hex}.tmp"
        write_bytes(folder / name, b"")
        return name

    mark = folder / first_decides(leave_mark, world)
    seen = gather(mark.is_file(), world)
    if world.first:
        mark.unlink(missing_ok=True)
    if not all(seen):
        raise UsageError(
            f"process {seen.index(False)} does not see the files that process 0 writes to {folder}; give all machines "
            "one shared folder, as POCKETZOO_OUTPUT"
        )


@contextmanager
def others_alive() -> Iterator[None]:
    """Say in a sentence that another process has ended, which torch.distributed says in many words.

    Raises:
        TrainingError: the connection to another process was lost.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            "the connection to another process of this training was lost; its own message says why it ended. The same "
            "command continues after the last state that was written"
        ) from error


def check_alone(command: str, instead: str) -> None:
    """Check that `torchrun` did not start this process.

    Raises:
        UsageError: it did, several times; says what to do instead.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"`pocketzoo {command}` does not run under torchrun, which is for `pocketzoo train`; {instead}"
        )


def interleaved(chunks: Sequence[T], world: World) -> Sequence[T]:
    """Every `size`-th chunk, beginning with the rank's."""
    return chunks[world.rank :: world.size]
