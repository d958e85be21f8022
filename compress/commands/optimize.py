"""The command that searches all stages of compression for the best artefact under a goal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from zoo.base.commandline import COMPRESS, Artefact, AsJson, app, console
from zoo.base.errors import ArtefactError
from zoo.base.files import checkpoint_path, output_root
from zoo.commands.runs import Data, named_source, notes_of

if TYPE_CHECKING:
    from compress.search.journal import Candidate
    from compress.search.stage import Found, OptimizeConfig

__all__ = ["optimize"]


@app.command(rich_help_panel=COMPRESS)
def optimize(
    artefact: Artefact,
    max_drop: Annotated[
        float, typer.Option(help="Points of validation top-1 that may be lost against the artefact.")
    ] = 0.5,
    latency_ms: Annotated[
        float | None,
        typer.Option(help="Longest time of one image in ms, all cores of this machine; then the most accurate wins."),
    ] = None,
    mb: Annotated[
        float | None, typer.Option("--mb", help="Largest ONNX file in MB (10^6 bytes); then the most accurate wins.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time of the whole search; a larger one continues it.")] = 10.0,
    importances: Annotated[
        str, typer.Option(help="What to rank channels by: l1, l2, fpgm, taylor, bn, random; separated by commas.")
    ] = "taylor,l2,fpgm",
    recover: Annotated[bool, typer.Option("--recover/--no-recover", help="Train pruned networks.")] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the new artefact; default: output/NAME-optimized.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of pruning, calibration and recovery.")] = 0,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Search for the fastest artefact that keeps its accuracy.

    Or for the most accurate one within a budget. Tries pruning, recovery and quantization; the same command
    continues a search that was interrupted.
    """
    from compress.search.pareto_front import Goal
    from compress.search.stage import OptimizeConfig
    from compress.search.stage import optimize as stage
    from zoo.artefact.card import allow
    from zoo.networks.checkpoint import read_card
    from zoo.training.workspace import without_data, write_notes

    config = OptimizeConfig(
        goal=Goal(max_drop=max_drop, latency_ms=latency_ms, megabytes=mb),
        minutes=minutes,
        importances=tuple(dict.fromkeys(name.strip() for name in importances.split(",") if name.strip())),
        recover=recover,
        seed=seed,
    )
    if artefact.suffix == ".onnx":
        raise ArtefactError(
            f"{artefact} is an ONNX file, whose channels cannot be pruned any more; "
            f"name the folder with its checkpoint: pocketzoo optimize {artefact.parent}"
        )
    source = checkpoint_path(artefact)
    card = read_card(source)
    allow(card, "prune")
    if without_data(source.parent, card, named_source(data)):
        raise ArtefactError(
            f"{source.parent} was imported and no labelled images belong to it, so nobody can say what pruning costs; "
            "name some with --data, or only quantize it: pocketzoo quantize ARTEFACT --calibrate FOLDER"
        )
    notes = notes_of(source, data)
    target = out or output_root() / f"{source.parent.resolve().name}-optimized"
    found = stage(source, target, config, dataset=notes.data.open_for(card))
    if found.path is not None:
        write_notes(target, notes)
    if as_json:
        print(json.dumps(_as_json(found)))
    else:
        _print(found, config)
    if found.chosen is None:
        raise ArtefactError(found.advice(config.goal))


def _print(found: Found, config: OptimizeConfig) -> None:
    from compress.search.pareto_front import drop

    parent = found.parent
    _print_rankings(found)
    print(
        f"validation: {parent.n} images, {parent.top1:.2%} before "
        f"(95 % interval {parent.low:.1%} to {parent.high:.1%}); at most {config.goal.max_drop:g} points may be lost"
    )
    shown = found.candidates if found.chosen else (parent, *(entry for entry in found.nearest if entry != parent))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("candidate", no_wrap=True)
    for heading in ("MACs %", "epochs", "top-1 %", "95 % CI", "drop", "ms", "times as fast", "in rounds", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in sorted(shown, key=lambda entry: entry.share, reverse=True):
        table.add_row(
            ">" if entry == found.chosen else "*" if entry in found.front else "",
            _label(entry),
            f"{100 * entry.macs / parent.macs:.0f}",
            str(entry.task.epochs or "-"),
            f"{100 * entry.top1:.1f}",
            f"{100 * entry.low:.1f}-{100 * entry.high:.1f}",
            f"{drop(entry, parent):+.1f}",
            f"{entry.ms:.3g}",
            f"{1 / entry.share:.2f}",
            f"{1 / max(entry.shares):.2f}-{1 / min(entry.shares):.2f}",
            f"{entry.megabytes:.2f}",
        )
    console().print(table)
    marks = ("> chosen, " if found.chosen else "the nearest; ") + "* unbeaten in accuracy, time and size"
    print(f"{marks}; {found.seconds / 60:.1f} minutes; {found.picture}")
    if found.chosen is not None and found.path is None:
        print("the artefact itself is the best that meets the goal; nothing was written")
    if found.earlier:
        print(f"the files of an earlier search stay in {found.journal.parent}: {', '.join(found.earlier)}")
    if found.path is not None and found.test is not None:
        test = found.test
        print(
            f"{found.path}: test top-1 {test.chosen.top1:.2%} (95 % interval {test.chosen.low:.1%} to "
            f"{test.chosen.high:.1%}, n = {test.chosen.n}), before {test.parent.top1:.2%}: "
            f"{0.0 - test.drop:+.1f} +- {test.margin:.1f} points; {test.agreement:.1%} of the answers agree"
        )


def _print_rankings(found: Found) -> None:
    """Accuracy after pruning and recalibration by importance, at the ratio where all of them were tried."""
    if not found.rankings:
        return
    first = found.rankings[0].task.ratio
    parts = [
        f"{record.task.importance} " + (f"{record.top1:.1%}" if record.top1 is not None else "not possible")
        for record in found.rankings
        if record.task.ratio == first
    ]
    print(f"before recovery, at {first:.0%} of the MACs: {', '.join(parts)}")


def _label(entry: Candidate) -> str:
    from compress.search.pareto_front import label

    return label(entry)


def _as_json(found: Found) -> dict[str, Any]:
    from compress.search.pareto_front import drop

    def row(entry: Candidate) -> dict[str, Any]:
        return dataclasses.asdict(entry) | {
            "name": entry.name,
            "share": entry.share,
            "ms": entry.ms,
            "drop": drop(entry, found.parent),
        }

    return {
        "parent": row(found.parent),
        "chosen": row(found.chosen) if found.chosen else None,
        "path": str(found.path) if found.path else None,
        "test": dataclasses.asdict(found.test) if found.test else None,
        "front": [entry.name for entry in found.front],
        "nearest": [entry.name for entry in found.nearest],
        "candidates": [row(entry) for entry in found.candidates],
        "rankings": [
            {
                "ratio": record.task.ratio,
                "importance": record.task.importance,
                "macs": record.macs,
                "top1": record.top1,
                "error": record.error,
            }
            for record in found.rankings
        ],
        "seconds": found.seconds,
        "journal": str(found.journal),
        "picture": str(found.picture),
        "earlier": list(found.earlier),
    }
