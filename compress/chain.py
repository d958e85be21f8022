"""The stages of compression in their order, skipping what is up to date."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from compress.export import export
from compress.prune import prune
from compress.quantize import quantize
from compress.recalibrate import batch_norms, recalibrate
from compress.recover import recover
from zoo import graph
from zoo.card import allow
from zoo.checkpoint import load, read_card
from zoo.errors import ArtefactError
from zoo.files import CHECKPOINT, GRAPH, INT8_GRAPH, checkpoint_path, sha256_file
from zoo.progress import note
from zoo.recipe import QuantizeConfig, Run
from zoo.train import add_test
from zoo.workspace import DataSource, card_if_readable, is_current, notes_for, read_notes, write_notes

__all__ = ["PRUNED", "compress_run", "export_artefact", "quantize_artefact"]

PRUNED = "-pruned"
"""Ending of the name of a pruned artefact."""


def compress_run(run: Run, output: Path, *, resume: bool = True, force: bool = False) -> Path:
    """Prune, recalibrate (where there is BatchNorm) and recover a trained artefact of a recipe.

    Args:
        run: its entry in the recipe.
        output: the folder of artefacts.
        resume: continue an interrupted recovery.
        force: do it even if the result is up to date.

    Returns:
        The checkpoint in `output/<name>-pruned`.

    Raises:
        PocketzooError: see the stages.
    """
    source = checkpoint_path(output / run.artefact)
    folder = output / f"{run.artefact}{PRUNED}"
    target = folder / CHECKPOINT
    normed = bool(batch_norms(load(source)[0]))
    steps: list[tuple[str, dict[str, Any]]] = [("prune", dataclasses.asdict(run.prune))]
    if normed:
        steps.append(("recalibrate", dataclasses.asdict(run.recalibrate)))
    steps.append(("recover", dataclasses.asdict(run.recover)))
    digest = sha256_file(source)
    if not force and is_current(card_if_readable(read_card, target), steps, digest):
        if run.test:
            add_test(target, lambda: read_notes(source.parent).data.open_for(read_card(source)))
        return target
    notes = read_notes(source.parent)
    dataset = notes.data.open_for(read_card(source))
    write_notes(folder, notes)
    pruned, recalibrated = folder / "pruned.safetensors", folder / "recalibrated.safetensors"
    done = prune(source, pruned, run.prune, dataset=dataset, name=folder.name)
    note(f"{folder.name}: {done.ratio:.0%} of the multiply-accumulates stay")
    if normed:
        change = recalibrate(pruned, recalibrated, run.recalibrate, dataset=dataset)
        note(f"{folder.name}: BatchNorm recalibrated, validation {change.top1_before:.2%} -> {change.top1_after:.2%}")
    recover(
        *(recalibrated if normed else pruned, source, target, run.recover),
        dataset=dataset,
        resume=resume,
        test=run.test,
    )
    for intermediate in (pruned, recalibrated):
        intermediate.unlink(missing_ok=True)
    return target


def export_artefact(artefact: Path, *, data: DataSource | None = None, force: bool = False) -> Path:
    """Export a checkpoint (a folder or file) to `model.onnx` beside it, and measure it on validation data.

    Args:
        artefact: the folder or the file.
        data: what to measure it on, where that is not what its run.json names; see zoo.workspace.notes_for.
        force: do it even if the result is up to date.
    """
    source = checkpoint_path(artefact)
    folder, target = source.parent, source.with_name(GRAPH)
    if force or not is_current(card_if_readable(graph.read_card, target), [("export", {})], sha256_file(source)):
        allow(read_card(source), "export")
        dataset = notes_for(folder, data).data.open_for(read_card(source))
        card = export(source, target, dataset=dataset)
        note(f"{folder.name}: exported, parity {card.lineage[-1].summary['parity']:.1e}")
    return target


def quantize_artefact(
    artefact: Path, config: QuantizeConfig, *, data: DataSource | None = None, force: bool = False
) -> Path:
    """Quantize `model.onnx` of an artefact to `model.int8.onnx` beside it; arguments as :func:`export_artefact`."""
    folder = artefact if artefact.is_dir() or not artefact.suffix else artefact.parent
    source, target = folder / GRAPH, folder / INT8_GRAPH
    if not source.is_file():
        raise ArtefactError(f"no ONNX file at {source}; run `pocketzoo export {folder}` first")
    steps = [("quantize", dataclasses.asdict(config))]
    if force or not is_current(card_if_readable(graph.read_card, target), steps, sha256_file(source)):
        parent = graph.read_card(source)
        dataset = notes_for(folder, data).data.open_for(parent)
        card = quantize(source, target, config, dataset=dataset, name=f"{parent.name}-int8")
        note(f"{folder.name}: INT8, {card.lineage[-1].summary['agreement']:.2%} of validation answers as before")
    return target
