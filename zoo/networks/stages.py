"""Which parts of a network are trained, and when.

A network is a list of stages from its input to its classifier: timm's coarse groups (a stage of a ResNet, a block of a
vision transformer) where timm defines them, else its children. The classifier is the last stage.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from timm.models import group_parameters
from torch import nn

from zoo.base.errors import UsageError
from zoo.networks.registry import classifier

__all__ = [
    "NORMS",
    "Freezing",
    "Stage",
    "eval_frozen",
    "is_batch_norm",
    "live_norms",
    "phases",
    "stages",
    "trainable_body",
    "trained_at",
]

NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
"""Normalisation layers; timm's and torchvision's own derive from these."""


@dataclass(frozen=True)
class Stage:
    """Consecutive layers of a network."""

    name: str
    """First part of its layers' names that tells it from the other stages."""
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    """Names of the modules that own these parameters (and their buffers)."""


@dataclass(frozen=True, kw_only=True)
class Freezing:
    """What is trained, from which epoch on. The default trains everything."""

    stages: int | None = None
    """Only the last so many stages, together; 1 is the classifier alone."""
    unfreeze: tuple[int, ...] = ()
    """Gradual unfreezing: the epoch, counted from 0, in which the classifier, the stage before it, the one before that
    ... join. Stages beyond the list stay frozen."""
    norms_only: bool = False
    """Only scale and offset of the normalisation layers, and the classifier (Frankle et al. 2021, arXiv 2003.00152)."""
    norm: str = "update"
    """Running statistics of BatchNorm in trained stages: `update`, `freeze` them as pretrained, which suits few images,
    or `reestimate`: update, and measure them anew over the training images at the end."""
    norm_affine: bool = True
    """Whether scale and offset of the normalisation layers are trained."""
    frozen_norm: str = "freeze"
    """Running statistics of BatchNorm in frozen stages: `freeze` or `update`."""

    def __post_init__(self) -> None:
        if self.stages is not None and self.stages < 1:
            raise UsageError(f"train.freeze.stages must be at least 1 (the classifier), got {self.stages}")
        if self.stages is not None and self.unfreeze:
            raise UsageError("give train.freeze.stages or train.freeze.unfreeze, not both")
        if self.unfreeze and (min(self.unfreeze) != 0 or list(self.unfreeze) != sorted(self.unfreeze)):
            raise UsageError(
                "train.freeze.unfreeze lists the epochs in which the stages join, from the classifier on: "
                f"expected rising numbers that begin with 0, got {list(self.unfreeze)}"
            )
        if self.norms_only and not self.norm_affine:
            raise UsageError("train.freeze.norms_only trains what train.freeze.norm_affine = false freezes; choose one")
        if self.norm not in ("update", "freeze", "reestimate"):
            raise UsageError(f"train.freeze.norm must be 'update', 'freeze' or 'reestimate', got {self.norm!r}")
        if self.frozen_norm not in ("freeze", "update"):
            raise UsageError(f"train.freeze.frozen_norm must be 'freeze' or 'update', got {self.frozen_norm!r}")


def is_batch_norm(module: nn.Module) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    """Whether a module keeps running statistics."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def stages(model: nn.Module) -> list[Stage]:
    """The stages of a network, from input to classifier; every parameter is in exactly one.

    What lies between the last stage and the classifier (a last norm, a hidden layer) belongs to the last stage.
    """
    head = {id(parameter) for parameter in classifier(model).parameters()}
    named = dict(model.named_parameters())
    last = [name for name, parameter in named.items() if id(parameter) in head]
    groups: list[list[str]] = []
    for group in _groups(model):
        body = [name for name in group if id(named[name]) not in head]
        if groups and (len(body) < len(group) or _norms_alone(model, body)):
            # Beside the classifier, or a norm that timm counts as a group of its own (VGG).
            groups[-1] += body
        elif body:
            groups.append(body)
    return [_stage(group, groups) for group in groups] + [Stage("classifier", tuple(last), _owners(last))]


def _groups(model: nn.Module) -> list[list[str]]:
    grouped = _timm_groups(model)
    if grouped is not None:
        return [grouped[key] for key in sorted(grouped)]
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        first, _, rest = name.partition(".")
        # A sequence of layers is as many stages as it has members.
        inside = isinstance(getattr(model, first, None), nn.Sequential)
        found.setdefault(f"{first}.{rest.partition('.')[0]}" if inside else first, []).append(name)
    return list(found.values())


def _timm_groups(model: nn.Module) -> Mapping[int, list[str]] | None:
    matcher = getattr(model, "group_matcher", None)
    if matcher is None:
        return None
    try:
        grouped: Mapping[int, list[str]] = group_parameters(model, matcher(coarse=True))
    except AssertionError:  # "coarse grouping is not implemented" (RDNet)
        return None
    return grouped


def _norms_alone(model: nn.Module, parameters: Sequence[str]) -> bool:
    return all(isinstance(model.get_submodule(owner), NORMS) for owner in _owners(parameters))


def _owners(parameters: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in parameters))


def _stage(group: Sequence[str], groups: Sequence[Sequence[str]]) -> Stage:
    """Named after the shortest beginning that none of the other groups shares."""
    parts = group[0].split(".")
    others = [name for other in groups if other is not group for name in other]
    for length in range(1, len(parts)):
        prefix = ".".join(parts[:length])
        if not any(name == prefix or name.startswith(f"{prefix}.") for name in others):
            break
    return Stage(prefix if len(parts) > 1 else parts[0], tuple(group), _owners(group))


def trained_at(
    model: nn.Module,
    config: Freezing,
    epoch: int,
    *,
    found: Sequence[Stage] | None = None,
    may: Collection[str] | None = None,
) -> set[str]:
    """Names of the parameters that learn in an epoch.

    Args:
        model: the network.
        config: what is trained when.
        epoch: from 0.
        found: its stages, if they are known.
        may: the parameters that may learn at all, like the adapters of LoRA and the classifier; None: every one.

    Raises:
        UsageError: the network has fewer stages than asked for.
    """
    parts = list(reversed(found or stages(model)))
    asked = len(config.unfreeze) or config.stages or 1
    if asked > len(parts):
        names = ", ".join(stage.name for stage in reversed(parts))
        raise UsageError(f"train.freeze asks for {asked} stages, the network has {len(parts)}: {names}")
    joins = list(config.unfreeze) or [0] * (config.stages or len(parts))
    chosen = {name for stage, start in zip(parts, joins, strict=False) if start <= epoch for name in stage.parameters}
    head = set(parts[0].parameters)
    norms = {
        f"{owner}.{key}"
        for owner, module in model.named_modules()
        if isinstance(module, NORMS)
        for key, _ in module.named_parameters(recurse=False)
    }
    if config.norms_only:
        chosen &= norms | head
    elif not config.norm_affine:
        chosen -= norms - head
    return chosen if may is None else chosen & set(may)


def live_norms(
    model: nn.Module,
    config: Freezing,
    epoch: int,
    *,
    found: Sequence[Stage] | None = None,
    may: Collection[str] | None = None,
) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """The BatchNorm layers whose running statistics move in an epoch: name -> module.

    Those of the classifier (an MLP) always do: there is nothing pretrained in it to keep. Arguments: see
    :func:`trained_at`.
    """
    parts = found or stages(model)
    # Which stage joins when does not depend on what of it is trained.
    whole = dataclasses.replace(config, norms_only=False, norm_affine=True)
    trained = trained_at(model, whole, epoch, found=parts)
    live: dict[str, nn.modules.batchnorm._BatchNorm] = {}
    for name, module in model.named_modules():
        if not is_batch_norm(module):
            continue
        stage = max(parts, key=lambda part: _shared(name, part))
        affine = {f"{name}.{key}" for key, _ in module.named_parameters(recurse=False)}
        inside = bool(set(stage.parameters) & trained) and (may is None or not affine or bool(affine & set(may)))
        rule = config.norm if inside else config.frozen_norm
        if rule != "freeze" or (stage is parts[-1] and inside):
            live[name] = module
    return live


def _shared(name: str, stage: Stage) -> int:
    """How many parts of a module's name a stage's modules share with it at most."""

    def common(other: str) -> int:
        pairs = zip(name.split("."), other.split("."), strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))

    return max(common(owner) + (owner == name) for owner in stage.modules)


def eval_frozen(
    model: nn.Module,
    config: Freezing,
    epoch: int,
    *,
    found: Sequence[Stage] | None = None,
    may: Collection[str] | None = None,
) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Set a network in training mode to what an epoch wants: frozen layers and frozen statistics as in evaluation.

    Arguments: see :func:`trained_at`.

    Returns:
        The BatchNorm layers whose statistics move.
    """
    parts = found or stages(model)
    trained = {id(model.get_parameter(name)) for name in trained_at(model, config, epoch, found=parts, may=may)}
    live = live_norms(model, config, epoch, found=parts, may=may)
    before: list[nn.Module] = []
    for module in model.modules():
        own = [id(parameter) for parameter in module.parameters()]
        if own and trained.isdisjoint(own):
            module.eval()
    for child in model.children():
        own = [id(parameter) for parameter in child.parameters()]
        first = next(iter(own), None)
        if first is None:
            before.append(child)
            continue
        # Dropout between stages goes with the layer that comes after it: before the classifier it stays on.
        if first not in trained:
            for module in before:
                module.eval()
        before = []
    for name, module in model.named_modules():
        if is_batch_norm(module):
            module.train(name in live)
    return live


def phases(config: Freezing, epochs: int) -> list[range]:
    """The runs of epochs in which the same parameters are trained.

    Raises:
        UsageError: a stage would join after the end.
    """
    if config.unfreeze and config.unfreeze[-1] >= epochs:
        raise UsageError(
            f"train.freeze.unfreeze: a stage would join in epoch {config.unfreeze[-1]}, counted from 0, "
            f"but there are {epochs} epochs"
        )
    starts = sorted({0, *config.unfreeze})
    return [range(begin, end) for begin, end in zip(starts, [*starts[1:], epochs], strict=True)]


def trainable_body(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters outside of the classifier that require gradients, by name."""
    head = {id(parameter) for parameter in classifier(model).parameters()}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in head
    }
