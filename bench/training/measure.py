"""Speed of training: pocketzoo against a plain loop of timm's parts, and head training against one evaluation.

All variants take turns, one process at a time, and read the same files. Imports and building the network are not
counted; reading the folder is, and so is validation after each epoch.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.rows import stamp
from bench.training.folders import READ_BY_ALL, class_folders
from zoo.artefact.clock import alternate
from zoo.artefact.environment import environment_text, load_average
from zoo.base.errors import UsageError, unknown_name
from zoo.base.machine import allocator_variables, cores
from zoo.base.progress import track
from zoo.base.size import Size, height_and_width
from zoo.base.statistics.intervals import ratio
from zoo.base.tables import markdown_table, rich_table
from zoo.data.dataset import Dataset, Sample

__all__ = ["PARTS", "TrainingConfig", "markdown", "measure_training", "render"]

PARTS: dict[str, tuple[str, ...]] = {
    "full": ("timm", "timm-channels-last", "timm-bf16", "timm-allocator", "pocketzoo", "pocketzoo-bf16"),
    "head": ("evaluation", "head"),
}
"""What is compared: every layer trained, or the classifier alone; the first variant is what ratios are relative to."""
_AS_IT_COMES = frozenset({"timm", "timm-channels-last", "timm-bf16"})
"""The others start with the allocator set up as pocketzoo's commands do it."""
_KEPT = "timm-allocator"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to measure."""

    part: str = "full"
    models: tuple[str, ...] = ("resnet18", "tf_efficientnet_lite0", "vit_tiny_patch16_224")
    variants: tuple[str, ...] = ()
    """Default: all of the part."""
    size: Size = 224
    """Of the input."""
    images: int = 0
    """Training images, and a quarter of that for validation; 0: all there are."""
    batch: int = 32
    epochs: int = 0
    """0: 2 for every layer, 50 for the classifier alone."""
    threads: int = 0
    """Of torch, and loader processes of timm; 0: all cores that this process may use."""
    rounds: int = 3
    """Processes per variant and network; they take turns."""

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise unknown_name("part", self.part, PARTS)
        for name in self.variants:
            if name not in PARTS[self.part]:
                raise unknown_name(f"variant of the part {self.part!r}", name, PARTS[self.part])
        height_and_width(self.size, where="--size")
        for key, low in (("images", 0), ("batch", 2), ("epochs", 0), ("threads", 0), ("rounds", 1)):
            if getattr(self, key) < low:
                raise UsageError(f"--{key} must be at least {low}, got {getattr(self, key)}")
        if not self.models:
            raise UsageError("--model names no network")

    @property
    def measured(self) -> tuple[str, ...]:
        """The variants to run: those asked for, after the one that ratios are relative to."""
        known = PARTS[self.part]
        return tuple(name for name in known if not self.variants or name in self.variants or name == known[0])


def measure_training(dataset: Dataset, config: TrainingConfig) -> list[dict[str, Any]]:
    """One complete row per network and variant; times are medians over the rounds.

    Args:
        dataset: its training and validation splits are used.
        config: what and how.

    Raises:
        UsageError: more images than there are.
        PocketzooError: a measuring process failed.
    """
    chosen = {split: _chosen(dataset, split, config.images) for split in ("train", "validation")}
    threads = config.threads or cores()
    epochs = config.epochs or {"full": 2, "head": 50}[config.part]
    answers: dict[tuple[str, str], list[dict[str, Any]]] = {
        (model, variant): [] for model in config.models for variant in config.measured
    }
    load = load_average()
    with class_folders(dataset.labels, chosen) as folder:
        commands, environments = {}, {}
        for model, variant in answers:
            job = {
                "variant": variant,
                "model": model,
                "folder": str(folder),
                "size": config.size,
                "batch": config.batch,
                "epochs": epochs,
                "threads": threads,
            }
            commands[f"{model} {variant}"] = ["-m", "bench.training.worker", json.dumps(job)]
            environments[f"{model} {variant}"] = allocator_variables(kept=variant not in _AS_IT_COMES)
        turns = alternate(commands, config.rounds, environments)
        for name, _, answer in track(turns, total=len(commands) * config.rounds, description="Measuring training"):
            model, variant = name.split(" ")
            answers[model, variant].append(answer)
    common = {
        "part": config.part,
        "image_size": config.size,
        "data": dataset.name,
        "n": len(chosen["train"]),
        "validation_n": len(chosen["validation"]),
        "batch": config.batch,
        "epochs": epochs,
        "threads": threads,
        "rounds": config.rounds,
        "load_average": load,
    } | stamp("timm", "torch")
    return [
        common
        | {"model": model, "variant": variant}
        | _summary(found, answers[model, config.measured[0]], answers.get((model, _KEPT)), config.part)
        for (model, variant), found in answers.items()
    ]


def render(rows: Sequence[dict[str, Any]]) -> Table:
    """A table for people."""
    return rich_table(
        ["<network", "<variant", "read s", "train s", "ms/image", "images/s", "ratio", "CPU s", "system %"],
        [
            [
                row["model"],
                row["variant"],
                f"{row['setup_seconds']:.2f}",
                f"{row['seconds']:.2f}",
                f"{1000 / row['images_per_s']:.2f}",
                f"{row['images_per_s']:.1f}",
                f"{row['ratio']:.3f}",
                *_processor(row),
            ]
            for row in rows
        ],
    )


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each was measured on, and a table for a document; speeds are relative to timm's."""
    measured = dict.fromkeys(
        f"{row['data']} ({row['n']:,} images, {row['validation_n']:,} validated after each of {row['epochs']} epochs), "
        f"batch {row['batch']}, median of {row['rounds']} rounds in turns; {environment_text(row['environment'])}"
        for row in rows
    )
    headings = ["<network", "<variant", "images/s", "speed", f"beside {_KEPT}", "CPU s", "system %"]
    lines = [
        [
            f"{row['model']}, {_pixels(row['image_size'])}",
            row["variant"],
            f"{row['images_per_s']:.1f}",
            f"{1 / row['ratio']:.2f}x",
            f"{1 / row['ratio_kept']:.2f}x" if row.get("ratio_kept") else "-",
            *_processor(row),
        ]
        for row in rows
    ]
    return "\n".join(measured) + "\n\n" + markdown_table(headings, lines)


def _processor(row: Mapping[str, Any]) -> list[str]:
    """Seconds of processor time, and the system's share of them in percent."""
    user, system = row.get("user_seconds"), row.get("system_seconds")
    if user is None or system is None or not user + system:
        return ["-", "-"]
    return [f"{user + system:.0f}", f"{100 * system / (user + system):.1f}"]


def _pixels(size: Size) -> str:
    height, width = height_and_width(size)
    return f"{height} px" if height == width else f"{height} x {width} px"


def _summary(
    found: list[dict[str, Any]], reference: list[dict[str, Any]], kept: list[dict[str, Any]] | None, part: str
) -> dict[str, Any]:
    return {
        "setup_seconds": round(statistics.median(answer["setup_seconds"] for answer in found), 4),
        "seconds": round(statistics.median(answer["seconds"] for answer in found), 4),
        "round_seconds": [round(answer["seconds"], 4) for answer in found],
        "images": found[0]["images"],
        "images_per_s": round(1 / statistics.median(_per_image(answer, part) for answer in found), 3),
        "ratio": round(ratio(_costs(found, part), _costs(reference, part)).value, 4),
        "ratio_kept": round(ratio(_costs(found, part), _costs(kept, part)).value, 4) if kept else None,
        "user_seconds": round(statistics.median(answer["user_seconds"] for answer in found), 2),
        "system_seconds": round(statistics.median(answer["system_seconds"] for answer in found), 2),
    }


def _per_image(answer: dict[str, Any], part: str) -> float:
    """Seconds per image and epoch; of full training, with the time that reading the folder takes."""
    return float((answer["seconds"] + (answer["setup_seconds"] if part == "full" else 0)) / answer["images"])


def _costs(answers: list[dict[str, Any]], part: str) -> list[float]:
    """What ratios compare: seconds per image, or, of the classifier alone, seconds: both parts read the same images."""
    return [float(answer["seconds"]) if part == "head" else _per_image(answer, part) for answer in answers]


def _chosen(dataset: Dataset, split: str, images: int) -> list[Sample]:
    """The first images of a split, the classes in turn."""
    turns = [
        (place, label, sample)
        for label in range(len(dataset.labels))
        for place, sample in enumerate(_readable(dataset.splits[split], label))
    ]
    found = [sample for _, _, sample in sorted(turns, key=lambda turn: turn[:2])]
    wanted = (images if split == "train" else max(1, images // 4)) if images else len(found)
    if len(found) < wanted:
        raise UsageError(f"--images {images}: expected {wanted} images for {split}, {dataset.name} has {len(found)}")
    return found[:wanted]


def _readable(samples: Sequence[Sample], label: int) -> list[Sample]:
    """Those of one label that timm's reader of folders takes, by their names."""
    return [
        sample
        for sample in samples
        if sample.label == label
        and (isinstance(sample.source, bytes) or Path(sample.source).suffix.lower() in READ_BY_ALL)
    ]
