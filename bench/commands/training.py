"""The command that measures how fast training is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bench.commands.group import bench
from zoo.base.commandline import AsJson, console
from zoo.base.files import output_root
from zoo.base.size import SIZE_HELP, parse_size

__all__ = ["training"]


@bench.command()
def training(
    data: Annotated[str, typer.Option("--data", help="Folder of images, or an embedded data set (mnist5k, digits).")],
    part: Annotated[
        str,
        typer.Option(
            help="full: every layer, against a plain loop of timm's parts; head: the classifier on frozen layers, "
            "against one evaluation of the same images."
        ),
    ] = "full",
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Architecture, with random weights. Repeatable. "
            "Default: resnet18, tf_efficientnet_lite0, vit_tiny_patch16_224.",
            show_default=False,
        ),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(
            help="timm, timm-channels-last, timm-bf16, timm-allocator (keeps freed memory, as pocketzoo does), "
            "pocketzoo, pocketzoo-bf16; evaluation, head. Repeatable. "
            "Default: all of the part; ratios are relative to timm or evaluation, which always runs.",
            show_default=False,
        ),
    ] = None,
    image_size: Annotated[str, typer.Option(help=f"{SIZE_HELP}.")] = "224",
    images: Annotated[
        int, typer.Option(help="Training images, and a quarter of that for validation; 0: all there are.")
    ] = 0,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 32,
    epochs: Annotated[int, typer.Option(help="0: 2 for `full`, 50 for `head`.")] = 0,
    threads: Annotated[int, typer.Option(help="Of torch, and loader processes of timm; 0: all cores.")] = 0,
    rounds: Annotated[int, typer.Option(help="Processes per variant and network; they take turns.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Compare the speed of training with a loop of timm's parts.

    Seconds per image; or of training a classifier against one evaluation.
    """
    from bench.rows import TRAINING, append
    from bench.training.measure import TrainingConfig, measure_training, render
    from zoo.data.catalogue import open_dataset

    config = TrainingConfig(
        part=part,
        models=tuple(model) if model else TrainingConfig.models,
        variants=tuple(variant or ()),
        size=parse_size(image_size, where="--image-size"),
        images=images,
        batch=batch,
        epochs=epochs,
        threads=threads,
        rounds=rounds,
    )
    rows = measure_training(open_dataset(data), config)
    append(output_root() / "bench" / TRAINING, rows)
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    console().print(render(rows))
