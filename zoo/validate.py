"""The hook for validators: the best fine-tuned vision transformers as torch modules."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from zoo.artefact.card import Card
from zoo.base.errors import ArtefactError
from zoo.base.files import CHECKPOINT, output_root, write_bytes
from zoo.networks.checkpoint import load, read_card
from zoo.training.workspace import card_if_readable

__all__ = ["STATE_DICTS", "best_fine_tuned", "load_my_models", "write_state_dicts"]

STATE_DICTS = {"full": "full_model.pt", "lora": "lora_model.pt"}
"""Kind of fine-tuning -> plain state dict in the folder of artefacts, under the names that validators look for."""


def load_my_models() -> tuple[nn.Module, nn.Module]:
    """The best fully fine-tuned and the best LoRA-merged ViT, by top-1 on validation data, in evaluation mode.

    They map float32 [B, C, H, W], preprocessed as the card of `output/<name>/model.safetensors` says, to logits.
    Artefacts are looked up beside this package (or in `POCKETZOO_OUTPUT`), whatever the working directory.

    Raises:
        ArtefactError: one of them has not been trained yet; names the command.
    """
    paths = best_fine_tuned(output_root())
    return load(paths["full"])[0], load(paths["lora"])[0]


def best_fine_tuned(output: Path) -> dict[str, Path]:
    """Checkpoint of the best ViT of each kind (`full`, `lora`), both fine-tuned on one data set.

    Pruned networks and controls from scratch don't count. With several data sets, the one with the best pair wins.

    Raises:
        ArtefactError: there is none of one kind.
    """
    best: dict[str, dict[str, tuple[float, Path]]] = {}
    for path in sorted(output.glob(f"*/{CHECKPOINT}")):
        card = card_if_readable(read_card, path)
        kind = _kind(card) if card else None
        metrics = card.metrics("validation") if card else None
        if kind is None or metrics is None or not _has_attention(path):
            continue
        found = best.setdefault(metrics.dataset, {})
        if metrics.top1 > found.get(kind, (-1.0, path))[0]:
            found[kind] = (metrics.top1, path)
    # Accuracies on different data say nothing about each other, so both networks are of one data set.
    pairs = [found for found in best.values() if set(found) == set(STATE_DICTS)]
    if not pairs:
        kinds = set().union(*best.values())
        missing = sorted(set(STATE_DICTS) - kinds) or ["pair of both kinds on one data set"]
        raise ArtefactError(
            f"no fine-tuned ViT ({' and no '.join(missing)}) under {output}; run `make train` "
            "(or `pocketzoo train --recipe quickstart`) first"
        )
    chosen = max(pairs, key=lambda found: sum(top1 for top1, _ in found.values()))
    return {kind: chosen[kind][1] for kind in STATE_DICTS}


def write_state_dicts(output: Path) -> list[Path]:
    """Write the two networks' weights as plain state dicts that load with `weights_only=True`.

    Raises:
        ArtefactError: see :func:`best_fine_tuned`.
    """
    written = []
    for kind, path in best_fine_tuned(output).items():
        buffer = io.BytesIO()
        torch.save(load(path)[0].state_dict(), buffer)
        target = output / STATE_DICTS[kind]
        if not target.is_file() or target.read_bytes() != buffer.getvalue():
            write_bytes(target, buffer.getvalue())
        written.append(target)
    return written


def _has_attention(path: Path) -> bool:
    """Whether a checkpoint's header lists a linear layer of queries, keys and values; no tensor is read."""
    with safe_open(path, "pt") as stream:
        names = [name for name in stream.keys() if name.endswith(".qkv.weight")]  # noqa: SIM118 (no dictionary)
        return any(len(stream.get_slice(name).get_shape()) == 2 for name in names)


def _kind(card: Card) -> str | None:
    """`full`, `lora`, or None where the artefact is not an unpruned network that was fine-tuned so."""
    stages = [entry.stage for entry in card.lineage]
    if set(stages) - {"train", "merge"} or card.build.lora is not None:
        return None
    adapted = len(stages) > 1 or card.lineage[0].config.get("weights") not in (None, "none", "")
    if not adapted:
        return None
    if stages[-1] == "merge":
        return "lora"
    return "full" if _trained_all(card.lineage[-1].config) else None


def _trained_all(config: Mapping[str, Any]) -> bool:
    """Whether a training changed every weight from its first step: no probe, no mask, no frozen stages."""
    if "fit" not in config or config.get("mask"):
        return False
    freeze = config["fit"].get("freeze", {})
    return freeze.get("stages") is None and not freeze.get("unfreeze") and not freeze.get("norms_only")
