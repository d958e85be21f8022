"""Logs of a training for other viewers: TensorBoard and Weights & Biases, fed with the rows of log.csv.

A log is written anew from the run's history whenever a session begins, so that one that was killed after its last
state.pt leaves no epoch twice, and a log may also be asked for in the middle of a training.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from zoo.base.errors import ArtefactError, TrainingError, unknown_name
from zoo.base.files import write_bytes
from zoo.base.progress import note
from zoo.networks.stages import Stage

__all__ = ["LOGS", "Log", "LogJob", "check_logs", "open_logs", "stage_factors"]


class Log(Protocol):
    """Where rows go."""

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the values of an epoch, counted from 1."""

    def close(self, *, ended: bool) -> None:
        """Write what is left; `ended`: the training has, and is not only interrupted."""


@dataclass(frozen=True, kw_only=True)
class LogJob:
    """The training that is logged."""

    folder: Path
    """Of the run; each log has one of its own in it."""
    title: str
    fingerprint: str
    """Of the run's settings, data and first weights."""
    resume: bool
    """Whether a run that was interrupted goes on."""
    settings: Mapping[str, Any]
    """What the viewer shows beside the curves (JSON)."""


def check_logs(names: Sequence[str]) -> None:
    """Check that logs can be written, before hours are spent.

    Raises:
        UsageError: an unknown name.
        ModuleNotFoundError: the package that writes one is not installed.
    """
    for name in names:
        if name not in LOGS:
            raise unknown_name("log", name, LOGS)
    if "tensorboard" in names:
        _summary_writer()
    if "wandb" in names:
        _wandb()


@contextmanager
def open_logs(
    names: Sequence[str], job: LogJob, history: Sequence[Mapping[str, float]], factors: Mapping[str, float]
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Logs that are closed at the end, also of a training that fails.

    Args:
        names: of LOGS; one that comes twice is written once.
        job: the training.
        history: rows of log.csv so far.
        factors: stage -> factor of the learning rate `lr` of a row.

    Yields:
        What adds a row of log.csv to each log, with a rate `lr/<stage>` for each stage.

    Raises:
        UsageError, ModuleNotFoundError: as :func:`check_logs`.
        ArtefactError: a log's folder cannot be written.
        TrainingError: Weights & Biases refuses.
    """
    check_logs(names)
    ended = False
    logs: list[Log] = []

    def close() -> None:
        for log in logs:
            log.close(ended=ended)

    with ExitStack() as stack:
        stack.callback(close)
        for name in dict.fromkeys(names):
            logs.append(LOGS[name](job))

        def write(row: Mapping[str, float]) -> None:
            # A run without validation images has no such values.
            values = {key: value for key, value in row.items() if key != "epoch" and not math.isnan(value)}
            values |= {f"lr/{stage}": row["lr"] * factor for stage, factor in factors.items()}
            for log in logs:
                log.write(int(row["epoch"]), values)

        for row in history:
            write(row)
        yield write
        ended = True


def stage_factors(model: nn.Module, parts: Sequence[Stage], optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Stage -> factor of the learning rate of what is trained in it; stages where nothing ever is are left out."""
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    found = {name: groups[id(value)]["factor"] for name, value in model.named_parameters() if id(value) in groups}
    named = {stage.name: [found[name] for name in stage.parameters if name in found] for stage in parts}
    return {stage: factors[0] for stage, factors in named.items() if factors}


class _TensorBoard:
    """Event files in `<folder>/tensorboard`."""

    def __init__(self, job: LogJob) -> None:
        folder = job.folder / "tensorboard"
        try:
            # Viewers forget from this step on what earlier files say. Without those files, a viewer that is looking on
            # would not find the new one (TensorBoard 2.21).
            self._writer = _summary_writer()(log_dir=str(folder), purge_step=1)
        except OSError as error:
            raise ArtefactError(f"--log tensorboard: {folder} cannot be written: {error.strerror or error}") from error

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self, *, ended: bool) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of project `pocketzoo`, or whatever WANDB_PROJECT says; its files lie in `<folder>/wandb`.

    Sent only where the user is logged in and neither WANDB_MODE nor `wandb offline` says otherwise.
    """

    def __init__(self, job: LogJob) -> None:
        wandb = _wandb()
        self._note = job.folder / "wandb" / "run.json"
        number = self._number(job)
        try:
            mode = wandb.setup().settings.mode
            if mode == "online" and not wandb.login(prompt=False, verify=False):
                mode = "offline"
            if mode == "offline":
                for old in self._note.parent.glob(f"offline-run-*-{number}"):
                    shutil.rmtree(old)
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "pocketzoo"),
                id=number,
                name=job.title,
                dir=str(job.folder),
                config=dict(job.settings),
                mode=mode,
                resume="allow" if mode == "online" else None,
                settings=wandb.Settings(console="off", silent=True, save_code=False),
            )
        except (wandb.errors.Error, OSError) as error:
            raise TrainingError(
                f"--log wandb: {error}; WANDB_MODE=offline keeps the log on this machine, to be sent with `wandb sync`"
            ) from error
        if mode == "offline":
            sent = f"nothing is sent; `wandb sync {Path(self._run.dir).parent}` sends it"
        else:
            sent = self._run.url or mode
        note(f"{job.title}: Weights & Biases, {sent}")

    def _number(self, job: LogJob) -> str:
        """The run's id: that of the session before, if the training goes on."""
        try:
            before = json.loads(self._note.read_text(encoding="utf-8"))
            if job.resume and before["fingerprint"] == job.fingerprint:
                return str(before["id"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # the log of no session before can be continued: a new one
        number = secrets.token_hex(4)
        write_bytes(self._note, json.dumps({"fingerprint": job.fingerprint, "id": number}).encode())
        return number

    def write(self, epoch: int, values: Mapping[str, float]) -> None:
        # A run that goes on has its earlier epochs already, and takes no step twice.
        if epoch >= self._run.step:
            self._run.log(dict(values), step=epoch)

    def close(self, *, ended: bool) -> None:
        self._run.finish(exit_code=0 if ended else 1)
        if ended:
            self._note.unlink(missing_ok=True)


LOGS: dict[str, Callable[[LogJob], Log]] = {"tensorboard": _TensorBoard, "wandb": _WeightsAndBiases}
"""Name -> what opens the log of a training."""


def _summary_writer() -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter


def _wandb() -> Any:
    # Before it is imported: it reports its own errors to its makers, also where nothing else is sent.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb
