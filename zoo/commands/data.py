"""The command that lists and opens data sets."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from zoo.base.commandline import PREPARE, AsJson, app, console
from zoo.commands.runs import LabelColumn, Layout, PathColumn, SplitColumn

__all__ = ["data"]


@app.command(rich_help_panel=PREPARE)
def data(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of a data set, a folder with one folder per class, or a list (CSV, TSV, JSON lines, Parquet).",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the splits that are made here, of --keep and of --labels.")] = 0,
    thin: Annotated[
        list[str] | None,
        typer.Option("--thin", help="Class, or group of classes, to thin in the training images. Repeatable."),
    ] = None,
    keep: Annotated[float, typer.Option(help="Share of the training images that --thin leaves, 0 to 1.")] = 0.2,
    labels: Annotated[float, typer.Option(help="Share of the training images whose labels stay, 0 to 1.")] = 1.0,
    layout: Layout = None,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    split_column: SplitColumn = None,
    as_json: AsJson = False,
) -> None:
    """List the data sets that have names, or open one.

    Opening downloads it if needed and prints what is in it.
    """
    if name is None:
        _print_list(as_json)
        return
    from zoo.data.catalogue import open_dataset
    from zoo.data.folders.reading import Reading
    from zoo.data.splits import Thin

    thinned = Thin(classes=tuple(thin), keep=keep) if thin else None
    reading = Reading(
        layout=layout or "auto",
        path_column=path_column or "",
        label_column=label_column or "",
        split_column=split_column or "",
    )
    found = open_dataset(name, seed=seed, thin=thinned, labels=labels, reading=reading)
    rows = {split: _counts(samples, found.labels) for split, samples in found.splits.items()}
    if found.unlabelled:
        rows["unlabelled"] = {"images": len(found.unlabelled)}
    if as_json:
        groups = {group: list(members) for group, members in found.groups.items()}
        shown = found.describe() | {"labels": list(found.labels), "groups": groups, "splits": rows}
        unused = [{field: getattr(entry, field) for field in entry._fields} for entry in found.unused]
        print(json.dumps(shown | {"unused": unused, "colour": found.colour}))
        return
    table = Table("split", "images", "per class: fewest", "median", "most")
    for split, row in rows.items():
        table.add_row(split, *(f"{row[key]:,g}" if key in row else "-" for key in ("images", "min", "median", "max")))
    console().print(table)
    print(f"{found.name}: {len(found.labels)} classes, {found.colour}; digest {found.digest[:16]}")
    print(f"splits: {found.rule}")
    if found.groups:
        print("groups: " + ", ".join(f"{group} ({len(members)} classes)" for group, members in found.groups.items()))
    lost = sum(entry.lost for entry in found.unused)
    print(f"not used: {lost:,} image(s), {len(found.unused) - lost:,} other file(s)")


def _print_list(as_json: bool) -> None:
    from zoo.data.catalogue import DATASETS
    from zoo.data.sources.download import data_root

    if as_json:
        fields = ("classes", "images", "source", "terms")
        listed = {name: {field: getattr(entry, field) for field in fields} for name, entry in DATASETS.items()}
        print(json.dumps({"datasets": listed, "folder": str(data_root())}))
        return
    table = Table("name", "classes", "images", Column("from", overflow="fold"), "terms")
    for name, entry in DATASETS.items():
        table.add_row(name, str(entry.classes), f"{entry.images:,}", entry.source, entry.terms)
    console().print(table)
    print(f"Downloads go to {_short(data_root())} (set POCKETZOO_DATA for another place).")


def _short(path: Path) -> str:
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else str(path)


def _counts(samples: Any, labels: tuple[str, ...]) -> dict[str, Any]:
    per_class = Counter(sample.label for sample in samples)
    counts = [per_class[label] for label in range(len(labels))]
    return {
        "images": len(samples),
        "min": min(counts),
        "median": statistics.median(counts),
        "max": max(counts),
        "per_class": dict(zip(labels, counts, strict=True)),
    }
