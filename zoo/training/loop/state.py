"""What a training run keeps on disk: state.pt to continue from, and log.csv."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from zoo.base.errors import ArtefactError
from zoo.base.files import write_atomically

__all__ = ["LOG", "STATE", "RunState", "read_log", "read_state", "write_log", "write_state"]

STATE = "state.pt"
LOG = "log.csv"
_COLUMNS = ("epoch", "lr", "loss", "validation_loss", "validation_top1", "seconds")


@dataclass
class RunState:
    """How far a run has come."""

    epoch: int = 0
    """Epochs that are done."""
    step: int = 0
    """Steps of the next epoch that are done."""
    loss_sum: float = 0.0
    """Sum of their losses."""
    seconds: float = 0.0
    """Over all sessions."""
    cpu_seconds: float = 0.0
    """Of the sessions before this one, and where it is written, of this one too."""
    precision: str = ""
    """float32 or bf16, once that is settled."""
    best_epoch: int = -1
    best_top1: float = -1.0
    best_loss: float = math.inf
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of log.csv per validation."""
    since: list[list[float]] = field(default_factory=list)
    """Loss and seconds of each epoch since the last validation."""


def write_state(path: Path, fingerprint: str, state: RunState, tensors: Mapping[str, Any]) -> None:
    """Write state.pt atomically: numbers as JSON, and state dicts.

    Raises:
        ArtefactError: the disk is full or cannot be written; the file before stays.
    """
    content = {"fingerprint": fingerprint, "numbers": json.dumps(dataclasses.asdict(state)), **tensors}

    def write(temporary: Path) -> None:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch makes of the operating system's "no space left"
            raise OSError(f"torch.save: {str(error).splitlines()[0]}") from error

    write_atomically(path, write)


def read_state(path: Path, fingerprint: str) -> tuple[RunState, dict[str, Any]] | None:
    """The numbers and state dicts in state.pt; None if it belongs to another run."""
    content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    if content.pop("fingerprint", None) != fingerprint:
        return None
    return RunState(**json.loads(content.pop("numbers"))), content


def write_log(path: Path, history: list[dict[str, float]]) -> None:
    """Write log.csv atomically."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(history[0]))
            writer.writeheader()
            writer.writerows(history)

    write_atomically(path, write)


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of log.csv: numbers by column.

    Raises:
        ArtefactError: it is not there, or no training's log.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = [{name: float(row[name]) for name in _COLUMNS} for row in csv.DictReader(stream)]
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is not there: only a folder that was trained in has one") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(f"{path} cannot be read as a training's log; train again to get a new one") from error
    if not rows:
        raise ArtefactError(f"{path} has no rows; train again to get a new one")
    return rows
