"""The command that measures accuracy: overall, per class, and how far confidence can be trusted."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from zoo.artefact.card import Card
from zoo.base.commandline import LOOK, Artefact, AsJson, Engine, app, console
from zoo.base.errors import ArtefactError, unknown_name
from zoo.base.files import CHECKPOINT, INT8_GRAPH, checkpoint_path, graph_paths, sha256_file
from zoo.base.progress import note
from zoo.commands.runs import Data, notes_of

__all__ = ["evaluate"]


@app.command(rich_help_panel=LOOK)
def evaluate(
    artefact: Artefact,
    data: Data = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    classes: Annotated[
        bool, typer.Option("--classes", help="Precision, recall and F1 (0 to 100 %) of each class, worst first.")
    ] = False,
    rare: Annotated[
        list[str] | None,
        typer.Option(
            "--rare",
            help="Class, or group of classes, to set apart; implies --classes. Repeatable. Default: what was thinned "
            "for training, else classes with fewer than half of the median number of training images.",
            show_default=False,
        ),
    ] = None,
    engine: Engine = None,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of an artefact on a data set.

    Of its ONNX files; without any, of its checkpoint.
    """
    from zoo.data.dataset import SPLITS
    from zoo.training.evaluate import file_logits, rare_labels

    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    paths = _files(artefact)
    source = notes_of(paths[0], data).data
    for path in paths:
        dataset = source.open_for(_card(path))
        answered = file_logits(path, dataset.splits[split], engine=engine)
        row, per_label = _measured(path, answered, dataset, split)
        details = None
        if classes or rare:
            details = _details(per_label, rare_labels(dataset, rare or (), thinned=_thinned(answered.card)))
        if as_json:
            print(json.dumps(row | (details or {})))
            continue
        if details:
            console().print(_table(details))
        interval = f"{row['low']:.2%} to {row['high']:.2%}"
        print(
            f"{row['artefact']}/{row['file']}: {row['split']} top-1 {row['top1']:.2%} ({interval}), n = {row['n']}, "
            f"calibration error {row['calibration_error']:.2%} ({row['engine_reason']})"
        )


def _files(artefact: Path) -> list[Path]:
    """The ONNX files of a folder that are of its checkpoint, else this; or the file that was named."""
    if not artefact.is_dir():
        path = checkpoint_path(artefact)
        if path.suffix == ".onnx":
            _is_of_checkpoint(path, path.with_name(CHECKPOINT))
        return [path]
    try:
        graphs = graph_paths(artefact)
    except ArtefactError:
        return [checkpoint_path(artefact)]
    checkpoint = artefact / CHECKPOINT
    return [path for path in graphs if _is_of_checkpoint(path, checkpoint)] or [checkpoint]


def _is_of_checkpoint(graph: Path, checkpoint: Path) -> bool:
    """Whether an ONNX file was exported from this checkpoint, as far as that can be known; notes that it was not."""
    parents = [entry.parent for entry in _card(graph).lineage if entry.stage == "export"]
    if not checkpoint.is_file() or not parents or parents[-1] == sha256_file(checkpoint):
        return True
    command = "pocketzoo export --int8" if graph.name == INT8_GRAPH else "pocketzoo export"
    note(f"{graph}: {graph.name} is of an earlier training; {command} writes it anew")
    return False


def _card(path: Path) -> Card:
    from zoo.artefact import onnx_file as graph
    from zoo.networks import checkpoint

    return checkpoint.read_card(path) if path.suffix == ".safetensors" else graph.read_card(path)


def _measured(path: Path, answered: Any, dataset: Any, split: str) -> tuple[dict[str, Any], list[Any]]:
    """What is known of the file on this split, and the metrics of every label that the data set has."""
    from zoo.artefact.environment import environment
    from zoo.artefact.predictor import softmax
    from zoo.data.image_set import truth
    from zoo.training.evaluate import accuracy, calibration_error, per_class

    card, logits = answered.card, answered.logits
    labels = truth(dataset, split, card.use.labels, where=str(path))
    metrics = accuracy(logits, labels, dataset=dataset.name, split=split, engine=answered.engine)
    row = {
        "artefact": path.resolve().parent.name,
        "file": path.name,
        "digest": answered.digest,
        "dataset_digest": dataset.digest,
        **dataclasses.asdict(metrics),
        "engine_reason": answered.engine_reason,
        "temperature": card.use.temperature,
        "calibration_error": calibration_error(softmax(logits, card.use.temperature), labels),
        "environment": environment(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return row, [entry for entry in per_class(logits, labels, card.use.labels) if entry.label in dataset.labels]


def _thinned(card: Any) -> tuple[str, ...]:
    """Classes and groups whose training images were thinned, as the last training's lineage entry says."""
    trained = [entry.config["data"] for entry in card.lineage if "data" in entry.config]
    config = trained[-1].get("thin") if trained else None
    return tuple(config["classes"]) if isinstance(config, Mapping) else ()


def _details(rows: list[Any], rare: tuple[str, ...]) -> dict[str, Any]:
    """The classes from the worst recall to the best, and macro averages over all, the rare ones and the others."""
    from zoo.training.evaluate import averages

    ordered = sorted(rows, key=lambda row: (row.recall, row.f1, row.label))
    means = {
        "all": averages(ordered),
        "rare": averages([row for row in ordered if row.label in rare]),
        "others": averages([row for row in ordered if row.label not in rare]),
    }
    return {
        "classes": [dataclasses.asdict(row) | {"rare": row.label in rare} for row in ordered],
        "macro": {name: dataclasses.asdict(mean) if mean else None for name, mean in means.items()},
    }


def _table(details: dict[str, Any]) -> Table:
    table = Table("class")
    for name in ("images", "precision", "recall", "F1"):
        table.add_column(name, justify="right")

    def add(name: str, row: Mapping[str, Any], *, last: bool = False) -> None:
        shares = (f"{row[key]:.2%}" for key in ("precision", "recall", "f1"))
        table.add_row(name, f"{row['n']:,}", *shares, end_section=last)

    for rare in (False, True):
        group = [row for row in details["classes"] if row["rare"] == rare]
        for number, row in enumerate(group, start=1):
            add(row["label"] + (" (rare)" if rare else ""), row, last=number == len(group))
    apart = details["macro"]["rare"] is not None
    for name, mean in details["macro"].items():
        if mean and (apart or name == "all"):
            add(f"mean of {name} ({mean['classes']})", mean)
    return table
