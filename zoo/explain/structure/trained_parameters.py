"""Which parameters of a checkpoint its last training changed, as far as its card says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from zoo.artefact.card import Card, LineageEntry
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import UsageError
from zoo.networks.stages import Freezing, phases, trained_at

__all__ = ["Training", "training_of"]

_TRAININGS = ("train", "recover")


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the last training of a network did."""

    stage: str
    """`train`; or `recover`, after pruning."""
    count: int
    """Number of weights that were trained, as the training itself counted them."""
    names: frozenset[str] | None
    """Names of the parameters that were trained; None: they cannot be told from the file, see `why`."""
    share: float | None
    """`count` over the number of the network's parameters; None: it was another network, pruned since."""
    why: str = ""
    """Why the single layers are not known."""


def training_of(model: nn.Module, card: Card) -> Training | None:
    """What was trained of a network, by its card; None: no training is recorded (imported, or never trained).

    The names follow from the recorded settings, and are given only where their number of weights is the recorded one.

    Args:
        model: the network of the checkpoint.
        card: its card.
    """
    steps = [entry for entry in card.lineage if entry.stage in _TRAININGS and _kept(entry)]
    if not steps:
        return None
    last = steps[-1]
    count = int(last.summary["trainable"])
    after = [entry.stage for entry in card.lineage[card.lineage.index(last) + 1 :]]
    share = None if "prune" in after else count / sum(parameter.numel() for parameter in model.parameters())
    names, why = None, _unknowable(last, after)
    if not why:
        names, why = _names(model, last.config)
    if names is not None:
        trained = names
        found = sum(parameter.numel() for name, parameter in model.named_parameters() if name in trained)
        if found != count:
            names, why = None, f"its settings would train {found:,} weights of this network"
    return Training(stage=last.stage, count=count, names=names, share=share, why=why)


def _kept(entry: LineageEntry) -> bool:
    """Whether the training is recorded, and the network has its weights: a recovery may have made them no better."""
    return "trainable" in entry.summary and entry.summary.get("best_epoch") != 0


def _unknowable(last: LineageEntry, after: list[str]) -> str:
    if "merge" in after:
        return "the trained weights are those of LoRA adapters, which were merged; lora.safetensors has them apart"
    if "prune" in after:
        return "the network was pruned after its training"
    if last.config.get("mask"):
        return "single weights were trained (mask), which the file does not name"
    return ""


def _names(model: nn.Module, config: Mapping[str, Any]) -> tuple[frozenset[str] | None, str]:
    """What the settings train in any epoch; None, and why, where they do not fit this version or the network."""
    fit = config.get("fit", {})
    may = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        freezing = to_dataclass(Freezing, fit.get("freeze", {}), "freeze")
        epoch = phases(freezing, int(fit.get("epochs", 1)))[-1][-1]
        return frozenset(trained_at(model, freezing, epoch, may=may)), ""
    except (DocumentError, UsageError) as error:  # settings of another version of this project
        return None, f"the recorded settings of the training cannot be used: {error}"
