"""The command that searches all stages of compression for the best artefact under a goal."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from zoo.base.commandline import COMPRESS, Artefact, AsJson, app, console
from zoo.base.errors import ArtefactError
from zoo.base.files import checkpoint_path, output_root
from zoo.commands.runs import Data, named_source, notes_of

if TYPE_CHECKING:
    from compress.search.candidates import Measured
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
    resize: Annotated[bool, typer.Option("--resize/--no-resize", help="Try smaller inputs.")] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the new artefact; default: output/NAME-optimized.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of pruning, calibration and recovery.")] = 0,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Search for the fastest artefact that keeps its accuracy.

    Or for the most accurate one within a budget. Tries pruning, recovery, INT8, bfloat16, smaller inputs and engines;
    the same command continues a search that was interrupted.
    """
    from compress.search.candidates import Goal
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
        resize=resize,
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
    results, parent = found.results, found.results.parent
    for candidate, top1 in found.given_up:
        print(f"given up before recovery: {candidate.pruned}, {top1:.1%}")
    for candidate, reason in found.failed:
        print(f"not made: {candidate.name}: {reason}")
    print(
        f"validation: {parent.metrics.n} images, {parent.metrics.top1:.2%} before; at most {config.goal.max_drop:g} "
        f"points may be lost; {parent.engine} computes the artefact itself"
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "candidate", "precision", "size", "engine"):
        table.add_column(heading, no_wrap=True)
    for heading in ("MACs %", "top-1 %", "95 % CI", "drop", "ms", "times as fast", "95 % CI", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    front = results.front()
    for entry in sorted(results.entries, key=lambda entry: entry.share, reverse=True):
        candidate, metrics, speed, (drop, low, high) = entry.candidate, entry.metrics, entry.speed, results.drop(entry)
        epochs = f", {candidate.epochs} epoch{'s'[: candidate.epochs - 1]}" if candidate.epochs else ""
        table.add_row(
            ">" if entry == found.chosen else "*" if entry in front else "",
            (f"{candidate.importance} {candidate.ratio:.2f}" if candidate.importance else "unpruned") + epochs,
            candidate.precision,
            "x".join(str(edge) for edge in candidate.size),
            entry.engine,
            f"{100 * entry.macs / parent.macs:.0f}",
            f"{100 * metrics.top1:.1f}",
            f"{100 * metrics.low:.1f}-{100 * metrics.high:.1f}",
            f"{drop:+.1f}{_mark(low, high, 0.0)}",
            f"{results.ms(entry):.3g}",
            f"{speed.value:.2f}{_mark(speed.low, speed.high, 1.0)}",
            "-" if speed.low is None else f"{speed.low:.2f}-{speed.high:.2f}",
            f"{entry.megabytes:.2f}",
        )
    console().print(table)
    print(
        "> chosen, * unbeaten in accuracy, time and size, ~ cannot be told from no difference by these images or "
        f"rounds; {found.seconds / 60:.1f} minutes; {found.picture}"
    )
    if found.chosen is not None and found.path is None:
        print("the artefact itself is the best that meets the goal; nothing was written")
    if found.earlier:
        print(f"the files of an earlier search stay in {found.study.parent}: {', '.join(found.earlier)}")
    if found.path is not None and found.test is not None:
        _print_test(found)


def _print_test(found: Found) -> None:
    assert found.test is not None and found.chosen is not None
    test, change = found.test, found.test.difference
    told = "" if change.low > 0 or change.high < 0 else ", which these images cannot tell from nothing"
    print(
        f"{found.path}: test top-1 {test.chosen.top1:.2%} (95 % interval {test.chosen.low:.1%} to "
        f"{test.chosen.high:.1%}, n = {test.chosen.n}), before {test.parent.top1:.2%}: {change.points:+.1f} points "
        f"({change.low:+.1f} to {change.high:+.1f}){told}; {test.agreement:.1%} of the answers agree"
    )
    if found.chosen.candidate.precision == "bf16":
        print(f"bfloat16 computes only where it is asked for: POCKETZOO_ENGINE={found.chosen.engine}")


def _mark(low: float | None, high: float | None, nothing: float) -> str:
    return " ~" if low is not None and high is not None and low <= nothing <= high else ""


def _as_json(found: Found) -> dict[str, Any]:
    results = found.results

    def row(entry: Measured) -> dict[str, Any]:
        derived = {"name": entry.name, "engine": entry.engine, "share": entry.share, "ms": results.ms(entry)}
        difference = {"drop": results.drop(entry), "speed": asdict(entry.speed)}
        return asdict(entry) | derived | difference

    return {
        "parent": row(results.parent),
        "chosen": row(found.chosen) if found.chosen else None,
        "path": str(found.path) if found.path else None,
        "test": asdict(found.test) if found.test else None,
        "front": [entry.name for entry in results.front()],
        "candidates": [row(entry) for entry in results.entries],
        "given_up": [asdict(candidate) | {"top1": top1} for candidate, top1 in found.given_up],
        "failed": [asdict(candidate) | {"reason": reason} for candidate, reason in found.failed],
        "seconds": found.seconds,
        "study": str(found.study),
        "picture": str(found.picture),
        "earlier": list(found.earlier),
    }
