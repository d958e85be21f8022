"""The hook for validators: the best fine-tuned vision transformers as torch modules."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from zoo.artefact.card import Card
from zoo.base.errors import ArtefactError, PocketzooError
from zoo.base.files import CHECKPOINT, PROJECT, checkpoint_path, output_root, write_bytes
from zoo.base.progress import note
from zoo.networks.checkpoint import load, read_card

__all__ = ["STATE_DICTS", "best_fine_tuned", "load_my_models", "write_state_dicts"]

STATE_DICTS = {"full": "full_model.pt", "lora": "lora_model.pt"}
"""Kind of fine-tuning -> plain state dict in the folder of artefacts, under the names that validators look for."""

_QUICKSTART = {"full": "vit-full", "lora": "vit-lora"}
"""What the project's own main job makes; where both are there, they are what is meant."""
_VARIABLES = {"full": "POCKETZOO_FULL", "lora": "POCKETZOO_LORA"}
_WORDS = {"full": "fully fine-tuned", "lora": "LoRA-merged"}


@dataclass(frozen=True, kw_only=True)
class _FineTuned:
    """A checkpoint that counts, by what its header says."""

    kind: str
    """A key of STATE_DICTS."""
    path: Path
    dataset: str
    top1: float
    """On validation data; NaN of a refit, which counts only where it is asked for."""


def load_my_models(*, full: str | Path | None = None, lora: str | Path | None = None) -> tuple[nn.Module, nn.Module]:
    """A fully fine-tuned and a LoRA-merged ViT in evaluation mode: the quickstart's, else the best by validation top-1.

    They map float32 [B, C, H, W], preprocessed as the card of `output/<name>/model.safetensors` says, to logits.
    Artefacts are looked up in `POCKETZOO_OUTPUT`, else in `output/` below the working directory, else, where that has
    none, in `output/` of the checkout that this package runs from. What cannot be read there is skipped with a note.

    Args:
        full: name or path of the artefact to take as the first; default: `POCKETZOO_FULL`, else the choice above.
        lora: the same of the second; `POCKETZOO_LORA`. With one of them, the other is of the same data set.

    Raises:
        ArtefactError: one of them has not been trained yet, or an artefact that was asked for is none of that kind;
            names the command, or the variable.
    """
    models = {kind: model for kind, _, model in _loaded(_output(), {"full": full, "lora": lora})}
    return models["full"], models["lora"]


def best_fine_tuned(output: Path) -> dict[str, Path]:
    """Checkpoint of the ViT of each kind (`full`, `lora`), both fine-tuned on one data set; only headers are read.

    The quickstart's pair goes first. Pruned networks and controls from scratch don't count. With several data sets, the
    one with the best pair wins.

    Raises:
        ArtefactError: there is none of one kind.
    """
    return {kind: entry.path for kind, entry in _best(_fine_tuned(output), {}, output).items()}


def write_state_dicts(output: Path) -> list[Path]:
    """Write the two networks' weights as plain state dicts that load with `weights_only=True`.

    Raises:
        ArtefactError: see :func:`load_my_models`, whose choice this is.
    """
    written = []
    for kind, _, model in _loaded(output, {}):
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        target = output / STATE_DICTS[kind]
        if not target.is_file() or target.read_bytes() != buffer.getvalue():
            write_bytes(target, buffer.getvalue())
        written.append(target)
    return written


def _output() -> Path:
    """The folder of artefacts: a validator may run in any folder, with the project checked out elsewhere."""
    output = output_root()
    checkout = (PROJECT / "pyproject.toml").is_file()
    if os.environ.get("POCKETZOO_OUTPUT") or not checkout or any(output.glob(f"*/{CHECKPOINT}")):
        return output
    return PROJECT / "output"


def _loaded(output: Path, asked: Mapping[str, str | Path | None]) -> list[tuple[str, Path, nn.Module]]:
    """Kind, path and network of the chosen two; no other one is loaded, unless one of them cannot be."""
    fixed = {}
    for kind, variable in _VARIABLES.items():
        if choice := asked.get(kind):
            fixed[kind] = _asked_for(kind, choice, output, where=f"{kind}={str(choice)!r}")
        elif named := os.environ.get(variable):
            fixed[kind] = _asked_for(kind, named, output, where=f"{variable}={named}")
    found = _fine_tuned(output) if len(fixed) < len(STATE_DICTS) else []
    models: dict[Path, nn.Module] = {}
    while True:
        chosen = _best(found, fixed, output)
        for kind, entry in chosen.items():
            try:
                models[entry.path] = models.get(entry.path) or load(entry.path)[0]
            except PocketzooError as error:
                if kind in fixed:
                    raise
                note(f"skipped: {error}")
                found = [other for other in found if other != entry]
                break
        else:
            return [(kind, entry.path, models[entry.path]) for kind, entry in chosen.items()]


def _asked_for(kind: str, choice: str | Path, output: Path, *, where: str) -> _FineTuned:
    """The artefact that somebody named, by the name of its folder or by its path."""
    named = output / choice
    try:
        path = checkpoint_path(named if named.exists() else Path(choice))
        card = read_card(path)
        entry = _entry(path, card)
    except PocketzooError as error:
        raise ArtefactError(f"{where}: {error}") from error
    if entry is None or entry.kind != kind:
        stages = ", ".join(step.stage for step in card.lineage)
        found = f"a {_WORDS[entry.kind]} one" if entry else f"{card.build.architecture} after {stages or 'nothing'}"
        raise ArtefactError(f"{where}: expected a {_WORDS[kind]} ViT that is not pruned, got {found}; name another one")
    return entry


def _fine_tuned(output: Path) -> list[_FineTuned]:
    """What counts under the folder of artefacts, by the headers of its checkpoints; what cannot be read is told."""
    found = []
    for path in sorted(output.glob(f"*/{CHECKPOINT}")):
        try:
            entry = _entry(path, read_card(path))
        except (PocketzooError, OSError) as error:
            note(f"skipped: {error}")
            continue
        if entry is not None and not math.isnan(entry.top1):
            found.append(entry)
    return found


def _entry(path: Path, card: Card) -> _FineTuned | None:
    kind, metrics = _kind(card), card.metrics("validation")
    if kind is None or not (metrics or card.refit_of) or not _has_attention(path):
        return None
    if metrics is None:
        trained = [entry.config["data"]["name"] for entry in card.lineage if "data" in entry.config]
        return _FineTuned(kind=kind, path=path, dataset=trained[-1], top1=math.nan)
    return _FineTuned(kind=kind, path=path, dataset=metrics.dataset, top1=metrics.top1)


def _best(found: list[_FineTuned], fixed: Mapping[str, _FineTuned], output: Path) -> dict[str, _FineTuned]:
    """One of each kind; what is fixed stays, the other one is of the same data set as it."""
    if set(fixed) == set(STATE_DICTS):
        return dict(fixed)
    # Accuracies on different data say nothing about each other, so both networks are of one data set.
    best: dict[str, dict[str, _FineTuned]] = {entry.dataset: {} for entry in (*found, *fixed.values())}
    for entry in sorted(found, key=lambda entry: entry.top1, reverse=True):
        best[entry.dataset].setdefault(entry.kind, entry)
    quickstart = {entry.kind: entry for entry in found if entry.path.parent.name == _QUICKSTART[entry.kind]}
    for pair in (quickstart, *sorted(best.values(), key=_accuracy, reverse=True)):
        whole = {**pair, **fixed}
        if set(whole) == set(STATE_DICTS) and len({entry.dataset for entry in whole.values()}) == 1:
            return {kind: whole[kind] for kind in STATE_DICTS}
    if fixed:
        ((kind, entry),) = fixed.items()
        (other,) = set(STATE_DICTS) - {kind}
        raise ArtefactError(
            f"no {_WORDS[other]} ViT on {entry.dataset} under {output} to go with {entry.path}; name one: {other}=... "
            f"or {_VARIABLES[other]}"
        )
    missing = sorted(set(STATE_DICTS) - {entry.kind for entry in found}) or ["pair of both kinds on one data set"]
    raise ArtefactError(
        f"no fine-tuned ViT ({' and no '.join(missing)}) under {output}; run `make train` "
        "(or `pocketzoo train --recipe quickstart`) first"
    )


def _accuracy(pair: Mapping[str, _FineTuned]) -> float:
    return sum(entry.top1 for entry in pair.values())


def _has_attention(path: Path) -> bool:
    """Whether a checkpoint's header lists a linear layer of queries, keys and values; no tensor is read."""
    try:
        with safe_open(path, "pt") as stream:
            names = [name for name in stream.keys() if name.endswith(".qkv.weight")]  # noqa: SIM118 (no dictionary)
            return any(len(stream.get_slice(name).get_shape()) == 2 for name in names)
    except SafetensorError as error:
        raise ArtefactError(f"{path}: {error}") from error


def _kind(card: Card) -> str | None:
    """`full`, `lora`, or None where the artefact is not an unpruned network that was fine-tuned so."""
    stages = [entry.stage for entry in card.lineage]
    if not stages or set(stages) - {"train", "merge"} or card.build.lora is not None:
        return None
    adapted = len(stages) > 1 or card.lineage[0].config.get("weights") not in (None, "none", "")
    if not adapted:
        return None
    if stages[-1] == "merge":
        return "lora"
    return "full" if _trained_all(card.lineage[-1].config) else None


def _trained_all(config: Mapping[str, Any]) -> bool:
    """Whether a training changed every weight from its first step: no probe, no mask, no frozen stages."""
    fit = config.get("fit")
    if not isinstance(fit, Mapping) or config.get("mask"):
        return False
    freeze = fit.get("freeze", {})
    if not isinstance(freeze, Mapping):
        return False
    return freeze.get("stages") is None and not freeze.get("unfreeze") and not freeze.get("norms_only")
