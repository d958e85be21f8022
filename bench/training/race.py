"""A race: whole programs fine-tune the same network on the same images, and what counts is accuracy over time.

A contestant's clock runs from the start of its process: imports, decoding, features and its validations all count, for
all alike. One process at a time; the contestants take turns, and each round has another seed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from scipy.stats import binomtest

from bench.rows import stamp
from bench.training.contestants import CONTESTANTS, OURS, PEERS, Course, fine_tune_settings
from bench.training.folders import class_folders
from bench.training.racer import Job
from zoo.artefact.clock import alternate
from zoo.artefact.environment import load_average
from zoo.base.errors import PocketzooError, UsageError, unknown_name
from zoo.base.files import sha256_file
from zoo.base.machine import allocator_variables, cores
from zoo.base.progress import note, track
from zoo.data.dataset import Dataset
from zoo.networks.registry import build
from zoo.networks.weights.first_weights import load_weights
from zoo.training.loop.distributed import pick_device

__all__ = ["ALLOCATORS", "RaceConfig", "run_race"]

ALLOCATORS = ("kept", "plain")
_PILOT_EPOCHS = 2


@dataclass(frozen=True, kw_only=True)
class RaceConfig:
    """Who races, and how."""

    model: str = "tf_efficientnet_lite0"
    weights: str = "pretrained"
    """What all of them start from, see zoo.networks.weights.first_weights.load_weights."""
    recipe: str | None = None
    """Of ours; None: what `pocketzoo train --data` takes."""
    settings: tuple[str, ...] = ()
    """Of ours, over the recipe's."""
    minutes: float | None = None
    """Each one's budget. A peer's number of epochs, where `epochs` has none, is what two epochs promise, run before."""
    epochs: Mapping[str, int] = field(default_factory=dict)
    """Contestant -> number of epochs, fastai's with a frozen body included."""
    size: int = 224
    """Of the input, in pixels, both ways."""
    batch: int = 32
    threads: int = 0
    """Of each, and loader processes of the peers; 0: all cores that this process may use."""
    rounds: int = 1
    allocator: str = "kept"
    """`kept`: all start with the settings of zoo.base.machine.keep_freed_memory; `plain`: each as it comes (pocketzoo
    sets up its own)."""
    timm_train: Path | None = None
    """timm's train.py; it is not in its wheel."""
    timm_args: str = ""
    fastai_args: str = ""
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*self.epochs, *self.without):
            if name not in CONTESTANTS:
                raise unknown_name("contestant", name, list(CONTESTANTS))
        if self.allocator not in ALLOCATORS:
            raise unknown_name("allocator", self.allocator, ALLOCATORS)
        for key, low in (("size", 16), ("batch", 2), ("threads", 0), ("rounds", 1)):
            if getattr(self, key) < low:
                raise UsageError(f"--{key} must be at least {low}, got {getattr(self, key)}")
        if any(number < 1 for number in self.epochs.values()) or self.epochs.get("fastai", 2) < 2:
            raise UsageError("--epochs: expected NAME=NUMBER of at least 1; fastai=2, the first with a frozen body")
        if self.minutes is not None and self.minutes <= 0:
            raise UsageError(f"--minutes must be more than 0, got {self.minutes:g}")
        if self.weights == "none":
            raise UsageError("--weights none: a race is about fine-tuning; give pretrained or a file")
        if not timm.is_model(self.model):
            raise UsageError(f"--model {self.model}: the peers only know timm's networks")
        if self.timm_train is not None and not self.timm_train.is_file():
            raise UsageError(f"--timm-train {self.timm_train}: no such file; name train.py of a checkout of timm")
        fine_tune_settings(self.fastai_args)


def run_race(dataset: Dataset, data: str, config: RaceConfig) -> Iterator[dict[str, Any]]:
    """One complete row per contestant and round, as they come; says who was left out or failed, and why.

    Args:
        dataset: its training and validation splits are used.
        data: what `pocketzoo train --data` opens it with.
        config: who and how.

    Raises:
        UsageError: a peer that nobody gave a number of epochs or minutes; images that are not in colour.
        ArtefactError: there are no such weights.
        PocketzooError: no contestant came to the end.
    """
    if dataset.colour != "RGB":
        raise UsageError(f"{dataset.name}: the peers only take colour images")
    missing: list[str] = []
    names = list(_entered(config, missing))
    if unplanned := [name for name in names if name in PEERS and name not in config.epochs and config.minutes is None]:
        raise UsageError(f"how long does {unplanned[0]} train? Give --minutes, or --epochs {unplanned[0]}=NUMBER")
    with class_folders(dataset.labels, {split: dataset.splits[split] for split in ("train", "validation")}) as folder:
        weights = folder / "first.safetensors"
        _write_weights(weights, dataset.labels, config)
        common = _common(dataset, config) | {"weights_digest": sha256_file(weights)}
        course = Course(
            data=data,
            folder=folder,
            weights=weights,
            output=folder,
            model=config.model,
            classes=len(dataset.labels),
            size=config.size,
            batch=config.batch,
            epochs=None,
            minutes=config.minutes,
            threads=common["threads"],
            seed=0,
            device=pick_device().type,
            recipe=config.recipe,
            settings=config.settings,
            timm_train=config.timm_train,
            timm_args=config.timm_args,
            fastai_args=config.fastai_args,
        )
        epochs = dict(config.epochs) | _searched(
            [name for name in names if name in PEERS and name not in config.epochs], course, config, missing
        )
        names = [name for name in names if name == OURS or name in epochs]
        entries = {
            (name, number): dataclasses.replace(
                course, epochs=epochs.get(name), seed=number, output=folder / f"output-{name}-{number}"
            )
            for number in range(config.rounds)
            for name in names
        }
        came = 0
        for (name, number), answer in _run(entries, config):
            if answer["failed"]:
                missing.append(f"{name} (round {number + 1}) failed: {answer['failed']}")
                continue
            came += 1
            yield common | _row(name, number, entries[name, number], answer, common)
    for line in missing:
        note(line)
    if missing:
        note(f"{len(missing)} left out or failed, {came} came to the end")
    if not came:
        raise PocketzooError("no contestant came to the end: " + "; ".join(missing))


def _entered(config: RaceConfig, missing: list[str]) -> Iterator[str]:
    for name in CONTESTANTS:
        if name in config.without:
            continue
        if name == "timm" and config.timm_train is None:
            missing.append("timm is left out: --timm-train PATH names train.py of a checkout (it is not in the wheel)")
        elif name == "fastai" and importlib.util.find_spec("fastai") is None:
            missing.append("fastai is left out: pip install 'pocketzoo[race]'")
        else:
            yield name


def _write_weights(path: Path, labels: Sequence[str], config: RaceConfig) -> None:
    """The network as pocketzoo would begin, for all; peers put their own classifiers in the place of the one here."""
    model = build(config.model, classes=len(labels), channels=3)
    load_weights(model, config.model, config.weights, labels=labels)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)


def _common(dataset: Dataset, config: RaceConfig) -> dict[str, Any]:
    return {
        "data": dataset.name,
        "data_digest": dataset.digest,
        "model": config.model,
        "image_size": config.size,
        "batch": config.batch,
        "threads": config.threads or cores(),
        "allocator": config.allocator,
        "minutes": config.minutes,
        "rounds": config.rounds,
        "n": len(dataset.splits["train"]),
        "validation_n": len(dataset.splits["validation"]),
        "load_average": load_average(),
    } | stamp("timm", "torch", "fastai")


def _run(
    entries: Mapping[tuple[str, int], Course], config: RaceConfig
) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    commands, environments = {}, {}
    for (name, number), course in entries.items():
        course.output.mkdir(exist_ok=True)
        places, how = CONTESTANTS[name].command(course)
        job = Job(contestant=name, arguments=[*places, *how])
        commands[f"{name} {number}"] = ["-m", "bench.training.racer", json.dumps(dataclasses.asdict(job))]
        environments[f"{name} {number}"] = {
            "POCKETZOO_OUTPUT": str(course.output),
            "OMP_NUM_THREADS": str(course.threads),
            "PYTHONUNBUFFERED": "1",
            "MPLBACKEND": "agg",
            **allocator_variables(kept=config.allocator == "kept"),
        }
    turns = alternate(commands, 1, environments)
    for key, _, answer in track(turns, total=len(commands), description="Racing"):
        name, _, turn = key.partition(" ")
        yield (name, int(turn)), answer


def _searched(names: Sequence[str], course: Course, config: RaceConfig, missing: list[str]) -> dict[str, int]:
    """As many epochs of each peer as two of them promise to fit into the minutes; without those that failed."""
    entries = {
        (name, 0): dataclasses.replace(course, epochs=_PILOT_EPOCHS, output=course.folder / f"pilot-{name}")
        for name in names
    }
    found = {}
    for (name, _), answer in _run(entries, config):
        if answer["failed"] or len(answer["curve"]) != _PILOT_EPOCHS:
            missing.append(f"{name} failed in the two epochs that plan its race: {answer['failed'] or answer['curve']}")
            continue
        first, second = (seconds for seconds, _ in answer["curve"])
        assert config.minutes is not None
        # fastai cannot do with less than one epoch of each kind.
        least = 2 if name == "fastai" else 1
        found[name] = max(least, 1 + math.floor((60 * config.minutes - first) / (second - first)))
        note(f"{name}: {second - first:.1f} s an epoch, so {found[name]} fit into {config.minutes:g} minutes")
    return found


def _row(
    name: str, number: int, course: Course, answer: Mapping[str, Any], common: Mapping[str, Any]
) -> dict[str, Any]:
    n = common["validation_n"]
    hits = [round(percent / 100 * n) for _, percent in answer["curve"]]
    times = [seconds for seconds, _ in answer["curve"]]
    ended = answer["ended"]
    later = common["n"] * (ended[-1] - ended[0]), times[-1] - times[0]
    interval = binomtest(hits[-1], n).proportion_ci(confidence_level=0.95, method="wilson")
    return {
        "contestant": name,
        "round": number,
        "seed": course.seed,
        "settings": CONTESTANTS[name].command(course)[1],
        "epochs": ended[-1],
        "curve": [[seconds, hit / n] for seconds, hit in zip(times, hits, strict=True)],
        "top1": hits[-1] / n,
        "low": float(interval.low),
        "high": float(interval.high),
        "best_top1": max(hits) / n,
        "seconds": answer["seconds"],
        "user_seconds": answer["user_seconds"],
        "system_seconds": answer["system_seconds"],
        "peak_mb": answer["peak_mb"],
        # Of whole epochs after the first validation, with theirs.
        "images_per_s": round(later[0] / later[1], 3) if len(times) > 1 else None,
    }
