"""The stages of compression in their order, skipping what is up to date."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.export import export
from compress.prune.stage import prune
from compress.quantize.report import images_digest, is_up_to_date, read_report
from compress.quantize.stage import looked_at, quantize
from compress.recalibrate import batch_norms, recalibrate
from compress.recover import recover
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import allow
from zoo.base.errors import ArtefactError, DataError
from zoo.base.files import CHECKPOINT, GRAPH, HALF_GRAPH, INT8_GRAPH, checkpoint_path, sha256_file
from zoo.base.names import PRUNED
from zoo.base.progress import note
from zoo.data.folders.unlabelled import sample_images
from zoo.networks.checkpoint import load, read_card
from zoo.training.recipe import QuantizeConfig, Run
from zoo.training.stage import add_test
from zoo.training.workspace import (
    DataSource,
    card_if_readable,
    is_current,
    notes_for,
    read_notes,
    without_data,
    write_notes,
)

__all__ = ["compress_run", "export_artefact", "quantize_artefact"]


def compress_run(run: Run, output: Path, *, resume: bool = True, force: bool = False, logs: Sequence[str] = ()) -> Path:
    """Prune, recalibrate (where there is BatchNorm) and recover a trained artefact of a recipe.

    Args:
        run: its entry in the recipe.
        output: the folder of artefacts.
        resume: continue an interrupted recovery.
        force: do every stage anew, whatever is there.
        logs: of the recovery, see zoo.training.loop.logs.LOGS.

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
    # Both stay until the recovery is done, so that one that was interrupted goes on from the very same network.
    if force or not is_current(card_if_readable(read_card, pruned), steps[:1], digest):
        done = prune(source, pruned, run.prune, dataset=dataset, name=folder.name)
        note(f"{folder.name}: {done.ratio:.0%} of the multiply-accumulates stay")
    if normed and (force or not is_current(card_if_readable(read_card, recalibrated), steps[1:2], sha256_file(pruned))):
        change = recalibrate(pruned, recalibrated, run.recalibrate, dataset=dataset)
        note(f"{folder.name}: BatchNorm recalibrated, validation {change.top1_before:.2%} -> {change.top1_after:.2%}")
    recover(
        *(recalibrated if normed else pruned, source, target, run.recover),
        dataset=dataset,
        resume=resume and not force,
        test=run.test,
        logs=logs,
    )
    for intermediate in (pruned, recalibrated):
        intermediate.unlink(missing_ok=True)
    return target


def export_artefact(artefact: Path, *, data: DataSource | None = None, force: bool = False) -> Path:
    """Export a checkpoint (a folder or file) to `model.onnx` beside it, and measure it on validation data.

    An imported artefact that no data belongs to is exported and proved, but not measured, until `data` is given; a
    refit, which was trained on the validation images, is not measured either.

    Args:
        artefact: the folder or the file.
        data: what to measure it on, where that is not what its run.json names; see zoo.training.workspace.notes_for.
        force: do it even if the result is up to date.
    """
    source = checkpoint_path(artefact)
    folder, target = source.parent, source.with_name(GRAPH)
    known = card_if_readable(graph.read_card, target)
    unmeasured = data is not None and known is not None and known.metrics("validation") is None
    if force or unmeasured or not is_current(known, [("export", {})], sha256_file(source)):
        parent = read_card(source)
        allow(parent, "export")
        dataset = None if without_data(folder, parent, data) else notes_for(folder, data).data.open_for(parent)
        if dataset is not None and "validation" not in dataset.splits:
            note(f"{folder.name}: not measured, as it was trained on the validation images, too")
            dataset = None
        card = export(source, target, dataset=dataset)
        note(f"{folder.name}: exported, parity {card.lineage[-1].summary['parity']:.1e}")
    return target


def quantize_artefact(
    artefact: Path,
    config: QuantizeConfig,
    *,
    data: DataSource | None = None,
    calibrate: Path | None = None,
    force: bool = False,
    analyse: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """Quantize `model.onnx` of an artefact to `model.int8.onnx` or `model.fp16.onnx` beside it, if it deserves it.

    Args:
        artefact: the folder or the ONNX file.
        config: settings.
        data: what to calibrate and compare on, where that is not what its run.json names.
        calibrate: a folder of images without labels to calibrate on instead.
        force: do it even if it was done before.
        analyse: measure what each node costs even if the budget holds.

    Returns:
        The file, which is not there if it was not worth it, and the report; see compress.quantize.report.
    """
    if not artefact.is_dir() and artefact.suffix not in ("", ".onnx", ".safetensors"):
        raise ArtefactError(
            f"expected an artefact's folder or .onnx file, got {artefact}; `pocketzoo list` shows what there is"
        )
    folder = artefact if artefact.is_dir() or not artefact.suffix else artefact.parent
    source = artefact if artefact.suffix == ".onnx" else folder / GRAPH
    if not source.is_file():
        raise ArtefactError(f"no ONNX file at {source}; run `pocketzoo export {folder}` first")
    parent = graph.read_card(source)
    allow(parent, "quantize")
    half = config.method == "fp16" or config.target == "cuda"
    endings = Path(HALF_GRAPH if half else INT8_GRAPH).suffixes
    target = source.with_name(source.stem + "".join(endings))
    images = None
    if calibrate:
        images = sample_images(calibrate, looked_at(config), seed=config.seed, white=parent.use.input.range)
    dataset = notes_for(folder, data).data.open_for(parent) if data else None
    told: dict[str, Any] = {}
    if images is not None:
        digest = dataset.digest if dataset else None
        told = {"unlabelled": True, "dataset": digest, "calibration_digest": images_digest(images)}
    elif dataset is not None:
        told = {"unlabelled": False, "dataset": dataset.digest}
    elif card_if_readable(read_notes, folder) is not None:
        told = {"unlabelled": False}
    done = read_report(target)
    current = is_up_to_date(target, config, parent=sha256_file(source), data=told)
    # Without a static candidate no node's cost is measured.
    lacking = analyse and not half and config.method != "dynamic" and done is not None and not done["sensitivity"]
    if done and current and not force and not lacking:
        return target, done
    if images is None and without_data(folder, parent, data):
        raise DataError(
            f"{parent.name} has no data to calibrate on: name a folder of images with --calibrate (labels are not "
            "needed), or a data set with its labels with --data"
        )
    if images is None and dataset is None:
        dataset = notes_for(folder, None).data.open_for(parent)
    name = f"{parent.name}-{'fp16' if half else 'int8'}"
    found = quantize(source, target, config, dataset=dataset, images=images, name=name, analyse=analyse)
    return target, found.report
