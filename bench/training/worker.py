"""One process of a training measurement: set up, train (or evaluate), and print the seconds as JSON.

Run by bench.training.measure as `python -m bench.training.worker JOB`, where JOB is a :class:`Job` as JSON.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.artefact.card import Input
from zoo.base.size import Size
from zoo.data.augment.pipeline import Augment
from zoo.data.dataset import Sample
from zoo.data.decoded import DecodedImages, canvas
from zoo.networks.registry import build, input_for
from zoo.networks.stages import Freezing
from zoo.training.evaluate import torch_logits
from zoo.training.loop.distributed import pick_device
from zoo.training.loop.fit import FitConfig, fit

__all__ = ["AREA", "ASPECT", "VARIANTS", "Job", "Measured", "measure"]

AREA = (0.4, 1.0)
ASPECT = 4 / 3
"""Random resized crops as zoo/recipes/auto.toml has them, mirrored, for every variant."""
_LR, _WEIGHT_DECAY = 1e-4, 0.05


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process does."""

    variant: str
    model: str
    folder: str
    """Has train/CLASS/* and validation/CLASS/*."""
    size: Size
    batch: int
    epochs: int
    threads: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What it took. Imports and building the network are not counted."""

    setup_seconds: float
    """Reading the folder: decoding it once, or making a loader."""
    seconds: float
    """Training with its validations, or evaluating."""
    images: int
    """Training images that went through a step, over all epochs; for evaluation, images evaluated."""
    user_seconds: float = 0.0
    system_seconds: float = 0.0
    """Of processor time for both, that of processes which load images included."""


def measure(job: Job) -> Measured:
    """Do a job once, in this process."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    classes = len(list((Path(job.folder) / "train").iterdir()))
    spec = input_for(job.model, colour="RGB", size=job.size, photographs=True)
    model = build(job.model, classes=classes, channels=3)
    before = os.times()
    found = VARIANTS[job.variant](job, model, spec)
    gc.collect()  # a loader's processes are counted once they have ended
    after = os.times()
    return dataclasses.replace(
        found,
        user_seconds=(after.user - before.user) + (after.children_user - before.children_user),
        system_seconds=(after.system - before.system) + (after.children_system - before.children_system),
    )


def _samples(job: Job, split: str) -> list[Sample]:
    """The images of a split; they need no digest, as nothing is resumed."""
    classes = sorted(path for path in (Path(job.folder) / split).iterdir())
    return [
        Sample(name=f"{folder.name}/{path.name}", label=label, digest=path.name, source=path)
        for label, folder in enumerate(classes)
        for path in sorted(folder.iterdir())
    ]


def _ours(job: Job, model: nn.Module, spec: Input, *, precision: str, head: bool = False) -> Measured:
    """`zoo.training.loop.fit.fit`, on images that it keeps in memory."""
    varied = Augment(area=AREA, aspect=ASPECT, flip=True, padding="border")
    config = FitConfig(
        epochs=job.epochs,
        batch_size=job.batch,
        lr=_LR,
        weight_decay=_WEIGHT_DECAY,
        augment=Augment() if head else varied,
        freeze=Freezing(stages=1 if head else None),
        precision=precision,
    )
    begin = time.perf_counter()
    train = DecodedImages(_samples(job, "train"), canvas(spec))
    validation = DecodedImages(_samples(job, "validation"), spec)
    ready = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        fit(model, train=train, validation=validation, spec=spec, config=config, folder=Path(folder), resume=False)
    # zoo.training.loop.fit leaves out a last batch of one image.
    rest = len(train) % job.batch
    counted = len(train) - (1 if rest == 1 and len(train) > 1 else 0)
    return Measured(setup_seconds=ready - begin, seconds=time.perf_counter() - ready, images=counted * job.epochs)


def _evaluation(job: Job, model: nn.Module, spec: Input) -> Measured:
    """One pass over the images that head training computes features of: all of both splits."""
    begin = time.perf_counter()
    splits = [DecodedImages(_samples(job, split), spec) for split in ("train", "validation")]
    device = pick_device()
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ready = time.perf_counter()
    for images in splits:
        torch_logits(model, images)
    return Measured(
        setup_seconds=ready - begin, seconds=time.perf_counter() - ready, images=sum(len(images) for images in splits)
    )


def _timm(job: Job, model: nn.Module, spec: Input, *, channels_last: bool = False, bf16: bool = False) -> Measured:
    """A plain loop of timm's parts, as its train.py puts them together."""
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    device = pick_device()
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    begin = time.perf_counter()
    train, validation = (_timm_loader(job, spec, split, device) for split in ("train", "validation"))
    ready = time.perf_counter()
    model.to(device, memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = create_optimizer_v2(model, opt="adamw", lr=_LR, weight_decay=_WEIGHT_DECAY)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=job.epochs, step_on_epochs=False, updates_per_epoch=len(train)
    )
    autocast: Callable[[], AbstractContextManager[Any]] = (
        (lambda: torch.autocast(device.type, torch.bfloat16)) if bf16 else nullcontext
    )
    steps = images_seen = 0
    for _ in range(job.epochs):
        model.train()
        for images, labels in train:
            with autocast():
                loss = nn.functional.cross_entropy(model(images.contiguous(memory_format=memory_format)), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()
            steps += 1
            images_seen += len(images)
            scheduler.step_update(num_updates=steps)
        _timm_validate(model, validation, autocast, memory_format)
    return Measured(setup_seconds=ready - begin, seconds=time.perf_counter() - ready, images=images_seen)


def _timm_loader(job: Job, spec: Input, split: str, device: torch.device) -> Any:
    from timm.data import create_dataset, create_loader

    training = split == "train"
    dataset = create_dataset("", root=str(Path(job.folder) / split), is_training=training, batch_size=job.batch)
    return create_loader(
        dataset,
        input_size=(3, *spec.size),
        batch_size=job.batch,
        is_training=training,
        scale=AREA,
        ratio=(1 / ASPECT, ASPECT),
        # train.py's default is 0.4, which pocketzoo does not do.
        color_jitter=None,
        interpolation=spec.resize.filter,
        mean=spec.mean,
        std=spec.std,
        num_workers=job.threads,
        device=device,
    )


def _timm_validate(
    model: nn.Module,
    loader: Iterable[tuple[torch.Tensor, torch.Tensor]],
    autocast: Callable[[], AbstractContextManager[Any]],
    memory_format: torch.memory_format,
) -> None:
    model.eval()
    with torch.inference_mode():
        for images, labels in loader:
            with autocast():
                logits = model(images.contiguous(memory_format=memory_format))
            (logits.argmax(1) == labels).sum().item()


VARIANTS: dict[str, Callable[[Job, nn.Module, Input], Measured]] = {
    "timm": _timm,
    "timm-channels-last": lambda job, model, spec: _timm(job, model, spec, channels_last=True),
    "timm-bf16": lambda job, model, spec: _timm(job, model, spec, channels_last=True, bf16=True),
    "timm-allocator": _timm,
    "pocketzoo": lambda job, model, spec: _ours(job, model, spec, precision="float32"),
    "pocketzoo-bf16": lambda job, model, spec: _ours(job, model, spec, precision="bf16"),
    "evaluation": _evaluation,
    "head": lambda job, model, spec: _ours(job, model, spec, precision="float32", head=True),
}


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(measure(Job(**json.loads(sys.argv[1]))))))
