"""The one training loop: fine-tuning, training from scratch, LoRA and recovery after pruning all run here.

`B` is the batch size, `K` the number of labels.
"""

from __future__ import annotations

import copy
import csv
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from zoo.batches import Images, Normalise
from zoo.card import Input
from zoo.datasets.augment import Augment, augment
from zoo.errors import TrainingError, UsageError
from zoo.evaluate import torch_logits
from zoo.files import write_atomically
from zoo.models.registry import classifier
from zoo.optim import make_optimizer, make_schedule
from zoo.progress import note

__all__ = ["FitConfig", "FitReport", "Loss", "cross_entropy", "fit", "pick_device"]

Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(network inputs [B, C, H, W], logits [B, K], labels [B]) -> scalar."""

STATE = "state.pt"
LOG = "log.csv"


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast to train."""

    epochs: int = 10
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    """Peak learning rate."""
    schedule: str = "one-cycle"
    warmup: float = 0.1
    """Share of training in which the rate rises."""
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient; 0: no limit."""
    label_smoothing: float = 0.0
    head_factor: float = 1.0
    """The classifier learns so many times faster than the rest; for a new head on pretrained features."""
    norm: str = "update"
    """Running statistics of BatchNorm: `update`, or `freeze` them as pretrained, which suits few images."""
    seed: int = 0
    augment: Augment = field(default_factory=Augment)

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("lr", "head_factor"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be a positive number, got {getattr(self, name)}")
        if self.norm not in ("update", "freeze"):
            raise UsageError(f"norm must be 'update' or 'freeze', got {self.norm!r}")


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What training did."""

    best_epoch: int
    """Counted from 1."""
    validation_top1: float
    epochs: int
    seconds: float
    """Over all sessions of a resumed run."""


def pick_device() -> torch.device:
    """The first NVIDIA GPU, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def cross_entropy(label_smoothing: float) -> Loss:
    """Cross-entropy with optional label smoothing."""

    def loss(_: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    return loss


def fit(
    model: nn.Module,
    *,
    train: Images,
    validation: Images,
    spec: Input,
    config: FitConfig,
    folder: Path,
    resume: bool,
    loss: Loss | None = None,
    title: str = "",
    identity: object = None,
) -> FitReport:
    """Train `model` in place and leave it with the weights of its best epoch on the validation images.

    An epoch's order, augmentation and dropout are drawn from (seed, epoch) alone, so a resumed run ends with the same
    weights as one that was never interrupted.

    Args:
        model: on the CPU; frozen parameters stay as they are.
        train: pictures of the canvas size (see zoo.batches.canvas).
        validation: pictures of the input size.
        spec: the network's input.
        config: how long and how fast.
        folder: gets log.csv, and state.pt until training has ended.
        resume: continue from state.pt if it belongs to the same run; else start over.
        loss: default: cross-entropy.
        title: of the progress bar.
        identity: what else makes this run another one than its weights, data and settings do (JSON).

    Raises:
        TrainingError: nothing is trainable, or the loss is not finite.
    """
    device = pick_device()
    memory_format = torch.channels_last if _convolutional(model) else torch.contiguous_format
    model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    run = _Run(model, config, fingerprint=_fingerprint(model, config, train, validation, identity), folder=folder)
    if resume:
        run.load()
    loss = loss or cross_entropy(config.label_smoothing)
    with _denormals_flushed():
        for epoch in range(run.epoch, config.epochs):
            begin = time.perf_counter()
            label = f"{title} epoch {epoch + 1}/{config.epochs}"
            mean_loss = _train_epoch(run, epoch, train, spec, loss, device, memory_format, label)
            logits = torch.from_numpy(torch_logits(model, validation, device=device))
            top1 = (logits.argmax(dim=1) == validation.labels).double().mean().item()
            validation_loss = nn.functional.cross_entropy(logits, validation.labels).item()
            seconds = time.perf_counter() - begin
            run.finish_epoch(epoch, mean_loss, top1, validation_loss, seconds)
            note(f"{label}: loss {mean_loss:.3f}, validation top-1 {top1:.2%}, {seconds:.1f} s")
    model.load_state_dict(run.best_state)
    model.to("cpu", memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    return FitReport(
        best_epoch=run.best_epoch + 1,
        validation_top1=run.best_top1,
        epochs=config.epochs,
        seconds=round(run.seconds, 1),
    )


@contextmanager
def _denormals_flushed() -> Iterator[None]:
    """Round denormal numbers to zero meanwhile: they are many times slower to compute with, and nothing is lost."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _train_epoch(
    run: _Run,
    epoch: int,
    train: Images,
    spec: Input,
    loss: Loss,
    device: torch.device,
    memory_format: torch.memory_format,
    label: str,
) -> float:
    """One pass over the training pictures; returns the mean loss."""
    config = run.config
    prepare = Normalise(spec, device)
    generator = torch.Generator().manual_seed(_seed(config.seed, epoch))
    torch.manual_seed(_seed(config.seed, epoch))
    chunks = _chunks(torch.randperm(len(train), generator=generator).tolist(), config.batch_size)
    total = 0.0
    run.model.train()
    _prepare_norms(run.model, config.norm)
    with tqdm(total=len(chunks), desc=label, leave=False, disable=not sys.stderr.isatty()) as bar:
        for step, (images, labels) in enumerate(train.batches(chunks)):
            inputs = prepare(augment(images.to(device), config.augment, spec.size, generator))
            inputs = inputs.contiguous(memory_format=memory_format)
            total += run.step(inputs, labels.to(device), loss, epoch + step / len(chunks))
            bar.set_postfix(loss=f"{total / (step + 1):.3f}", best=f"{run.best_top1:.2%}", refresh=False)
            bar.update()
    return total / len(chunks)


def _prepare_norms(model: nn.Module, rule: str) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if rule == "freeze":
                module.eval()
            # Networks ported from TensorFlow keep 99 % of the old statistics per step, which suits ImageNet's million
            # steps; a short fine-tuning would end with statistics of weights it no longer has.
            elif module.momentum is not None:
                module.momentum = max(module.momentum, 0.1)


def _chunks(order: list[int], size: int) -> list[list[int]]:
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    # A last batch of one picture has no variance for BatchNorm.
    return chunks[:-1] if len(chunks) > 1 and len(chunks[-1]) == 1 else chunks


class _Run:
    """The state of one training run: what is saved after each epoch and loaded on resume."""

    def __init__(self, model: nn.Module, config: FitConfig, *, fingerprint: str, folder: Path) -> None:
        self.model = model
        self.config = config
        self.folder = folder
        self.fingerprint = fingerprint
        self.optimizer = make_optimizer(
            config.optimizer,
            model,
            lr=config.lr,
            weight_decay=config.weight_decay,
            faster={} if config.head_factor == 1 else dict.fromkeys(classifier(model).parameters(), config.head_factor),
        )
        self.schedule = make_schedule(config.schedule, warmup=config.warmup)
        self.epoch = 0
        self.seconds = 0.0
        self.best_epoch, self.best_top1, self.best_loss = -1, -1.0, math.inf
        self.best_state: dict[str, torch.Tensor] = {}
        self.history: list[dict[str, float]] = []

    def step(self, inputs: torch.Tensor, labels: torch.Tensor, loss: Loss, epochs_done: float) -> float:
        """One update; returns the loss."""
        rate = self.config.lr * self.schedule(epochs_done / self.config.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        value = loss(inputs, self.model(inputs), labels)
        if not torch.isfinite(value):
            state = self.folder / STATE
            kept = f"the last good epoch is in {state}" if self.epoch else "nothing was kept"
            raise TrainingError(
                f"the loss is {value.item()} after {epochs_done:.2f} epochs at the learning rate {rate:.2g}; "
                f"lower it (--set train.lr=...); {kept}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        return float(value.item())

    def finish_epoch(self, epoch: int, loss: float, top1: float, validation_loss: float, seconds: float) -> None:
        """Keep the weights if they are the best so far; write the state and the log."""
        if (top1, -validation_loss) > (self.best_top1, -self.best_loss):
            self.best_epoch, self.best_top1, self.best_loss = epoch, top1, validation_loss
            self.best_state = copy.deepcopy(self.model.state_dict())
        self.epoch = epoch + 1
        self.seconds += seconds
        rate = self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["factor"]
        self.history.append(
            {
                "epoch": epoch + 1,
                "lr": rate,
                "loss": loss,
                "validation_loss": validation_loss,
                "validation_top1": top1,
                "seconds": seconds,
            }
        )
        state = {
            "fingerprint": self.fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best_state,
            "numbers": json.dumps(
                [self.epoch, self.seconds, self.best_epoch, self.best_top1, self.best_loss, self.history]
            ),
        }
        write_atomically(self.folder / STATE, lambda path: torch.save(state, path))
        write_atomically(self.folder / LOG, self._write_log)

    def load(self) -> None:
        """Continue where state.pt left off, if it is of this very run."""
        path = self.folder / STATE
        if not path.is_file():
            return
        state: Mapping[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if state.get("fingerprint") != self.fingerprint:
            note(f"{path} belongs to a run with other settings or data; starting over")
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_state = dict(state["best"])
        numbers = json.loads(state["numbers"])
        self.epoch, self.seconds, self.best_epoch, self.best_top1, self.best_loss, self.history = numbers
        note(f"resuming after epoch {self.epoch}/{self.config.epochs}")

    def _write_log(self, path: Path) -> None:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(self.history[0]))
            writer.writeheader()
            writer.writerows(self.history)


def _fingerprint(model: nn.Module, config: FitConfig, train: Images, validation: Images, identity: object) -> str:
    """Identifies a run: its settings, data and initial weights."""
    total = hashlib.sha256(json.dumps([asdict(config), identity], sort_keys=True).encode())
    for images in (train, validation):
        total.update(repr(images.spec).encode())
        total.update("".join(f"{sample.digest}:{sample.label};" for sample in images.samples).encode())
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()


def _seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{epoch}".encode()).digest()[:7], "big")


def _convolutional(model: nn.Module) -> bool:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules()) > 1
