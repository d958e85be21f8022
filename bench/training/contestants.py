"""Who races, each with the command that starts it and the line in which it reports an epoch's validation top-1."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.base.errors import UsageError

__all__ = ["CONTESTANTS", "OURS", "PEERS", "Contestant", "Course", "fine_tune_settings"]

OURS = "pocketzoo"
PEERS = ("timm", "fastai")


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a contestant is given; peers differ from ours in reading `folder`."""

    data: str
    """As `pocketzoo train --data` takes it."""
    folder: Path
    """The same images as train/CLASS/* and validation/CLASS/*."""
    weights: Path
    """First weights, in timm's names."""
    output: Path
    """Where it may write."""
    model: str
    classes: int
    size: int
    """Pixels, both ways."""
    batch: int
    epochs: int | None
    """None, for ours alone: as many as its recipe or `minutes` says."""
    minutes: float | None
    threads: int
    seed: int
    device: str
    recipe: str | None
    settings: Sequence[str] = ()
    """Of ours, as `--set` takes them."""
    timm_train: Path | None = None
    timm_args: str = ""
    """Come last, so that they win."""
    fastai_args: str = ""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """How to start it and to understand it."""

    command: Callable[[Course], tuple[list[str], list[str]]]
    """Arguments of the interpreter that say what is where, and those that say how to train."""
    reports: re.Pattern[str]
    """Matches the line that ends an epoch; its group `top1` is a percentage, `epoch`, where there is
    one, its number."""


def fine_tune_settings(text: str) -> dict[str, float]:
    """Arguments of fastai's `fine_tune` in `base_lr=0.004 freeze_epochs=2`; whole numbers stay whole.

    Raises:
        UsageError: not of this form.
    """
    found: dict[str, float] = {}
    for word in shlex.split(text):
        key, _, value = word.partition("=")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = float("nan")
        if not key.isidentifier() or not isinstance(found[key], int | float) or found[key] != found[key]:
            raise UsageError(f"--fastai-args {word!r}: expected NAME=NUMBER of fine_tune, like base_lr=0.004")
    return found


def _pocketzoo(course: Course) -> tuple[list[str], list[str]]:
    places = ["-m", "zoo", "train", "--data", course.data, "--weights", str(course.weights)]
    how = ["--model", course.model, "--batch-size", str(course.batch)]
    if course.recipe is not None:
        how += ["--recipe", course.recipe]
    if course.epochs is not None:
        how += ["--epochs", str(course.epochs)]
    elif course.minutes is not None:
        how += ["--minutes", f"{course.minutes:g}"]
    # Test images are for the end of a study.
    settings = ["test=false", f"size={course.size}", f"train.seed={course.seed}", *course.settings]
    return places, how + [word for setting in settings for word in ("--set", setting)]


def _timm(course: Course) -> tuple[list[str], list[str]]:
    places = [str(course.timm_train), "--data-dir", str(course.folder), "--output", str(course.output)]
    places += ["--pretrained-path", str(course.weights), "--experiment", "race", "--val-split", "validation"]
    how = ["--pretrained", "--model", course.model, "--num-classes", str(course.classes)]
    how += ["--input-size", "3", str(course.size), str(course.size), "--batch-size", str(course.batch)]
    # Rates that decay by layer are how timm's own recipes fine-tune; the number is that of BEiT (arXiv 2106.08254).
    how += ["--opt", "adamw", "--lr", "1e-3", "--weight-decay", "0.05", "--layer-decay", "0.75"]
    how += ["--sched", "cosine", "--sched-on-updates", "--epochs", str(course.epochs), "--warmup-lr", "1e-6"]
    how += ["--warmup-epochs", "1" if (course.epochs or 0) > 1 else "0", "--smoothing", "0.1"]
    how += ["--workers", str(course.threads), "--device", course.device, "--seed", str(course.seed)]
    how += ["--checkpoint-hist", "1", *shlex.split(course.timm_args)]
    return places, how


def _fastai(course: Course) -> tuple[list[str], list[str]]:
    places = {"folder": str(course.folder), "weights": str(course.weights)}
    how: dict[str, Any] = {"model": course.model, "size": course.size, "batch": course.batch, "epochs": course.epochs}
    how |= {"threads": course.threads, "seed": course.seed, "fine_tune": fine_tune_settings(course.fastai_args)}
    return ["-m", "bench.training.fastai_worker", json.dumps(places)], [json.dumps(how)]


CONTESTANTS: Mapping[str, Contestant] = {
    OURS: Contestant(
        command=_pocketzoo, reports=re.compile(r"epoch (?P<epoch>\d+)/\d+: .*validation top-1 (?P<top1>\d+(\.\d+)?)%")
    ),
    "timm": Contestant(
        command=_timm,
        # The last batch of a validation, whose average is over all of them.
        reports=re.compile(r"Test: \[ *(?P<last>\d+)/(?P=last)\].* Acc@1: +[\d.]+ \( *(?P<top1>\d+(\.\d+)?)\)"),
    ),
    "fastai": Contestant(
        command=_fastai,
        reports=re.compile(r"^epoch \d+: validation top-1 (?P<top1>\d+(\.\d+)?)%$"),
    ),
}
"""Name -> contestant; ours first, as ratios are to peers."""
