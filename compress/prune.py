"""Structured pruning: remove whole channels, heads and hidden units, so that the network really gets smaller.

torch-pruning's dependency graph (Fang et al. 2023, DepGraph, arXiv 2301.12900) finds which channels of which layers
hang together; what goes is decided here: the same share of every group, the least important units first, widths
rounded up to what the kernels like. ResNet-like networks lose channels, vision transformers attention heads and
hidden units of their MLPs; their embedding stays.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from zoo.card import Card, Input, Stage, advance, allow
from zoo.checkpoint import heads_of, load, rebuild, save
from zoo.datasets.base import Dataset
from zoo.errors import ArtefactError, UsageError, unknown_name
from zoo.files import code_commit, sha256_file
from zoo.models.registry import count_macs, last_layers
from zoo.models.shrink import attentions, qkv_width, set_heads
from zoo.recipe import PruneConfig
from zoo.train import measured

__all__ = ["IMPORTANCES", "Plan", "Step", "plan", "prune", "prune_model"]

Score = Callable[[Any], torch.Tensor]

IMPORTANCES: dict[str, Callable[[int], Score]] = {
    "l1": lambda seed: tp.importance.GroupMagnitudeImportance(p=1),
    "l2": lambda seed: tp.importance.GroupMagnitudeImportance(p=2),
    "random": lambda seed: _random_score(seed),
}
"""Name -> a function of the seed that returns a score per unit of a group; the lowest go first."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What goes from one group of coupled layers."""

    layer: str
    """The layer the group is named after."""
    unit: str
    """`channel`, `hidden unit` or `head`."""
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What pruning will do; nothing is changed by making one."""

    keep: float
    """Share of every group that stays, before rounding."""
    steps: tuple[Step, ...]
    macs_before: int
    macs_after: int

    @property
    def ratio(self) -> float:
        """Share of the multiply-accumulates that stays."""
        return self.macs_after / self.macs_before


def plan(model: nn.Module, spec: Input, config: PruneConfig) -> Plan:
    """The plan that keeps the most while leaving at most `config.goal[1]` of the multiply-accumulates.

    Args:
        model: stays as it is.
        spec: the network's input.
        config: the goal.

    Raises:
        UsageError: a goal outside (0, 1), or one that cannot be reached with the least widths.
        ArtefactError: the network has couplings that this pruning does not understand.
    """
    return _search(model, spec, config)[0]


def prune_model(model: nn.Module, spec: Input, config: PruneConfig) -> tuple[nn.Module, Plan]:
    """A pruned copy of `model` and the plan that made it; errors as :func:`plan`.

    Counting its multiply-accumulates ran the copy, so it is known to work.
    """
    done, pruned = _search(model, spec, config)
    return pruned, done


def prune(
    source: Path, target: Path, config: PruneConfig, *, dataset: Dataset | None = None, name: str | None = None
) -> Plan:
    """Prune a checkpoint into another one.

    Args:
        source: checkpoint to read.
        target: checkpoint to write; it reloads from its header alone, which is checked before this returns.
        config: how much.
        dataset: measures the pruned network on its validation split.
        name: of the new artefact.

    Raises:
        ArtefactError: wrong stage (unmerged, exported), or a network that cannot be pruned or rebuilt.
        UsageError: see :func:`plan`.
    """
    begin = time.perf_counter()
    model, card = load(source)
    allow(card, "prune")
    pruned, done = prune_model(model, card.use.input, config)
    entry = Stage(
        stage="prune",
        config=dataclasses.asdict(config),
        parent=sha256_file(source),
        seed=config.seed,
        commit=code_commit(),
        summary={
            "macs_before": done.macs_before,
            "macs_after": done.macs_after,
            "macs_ratio": round(done.ratio, 4),
            "keep": round(done.keep, 4),
            "groups": len(done.steps),
        },
        seconds=round(time.perf_counter() - begin, 1),
    )
    card = advance(card, entry, name=name)
    card = _rebuilt(card, pruned, done)
    card = measured(pruned, card, dataset, test=False) if dataset else card
    with tempfile.TemporaryDirectory() as scratch:
        draft = Path(scratch) / target.name
        save(pruned, card, draft)
        _check_reload(pruned, draft, card.use.input)
    save(pruned, card, target)
    return done


def _rebuilt(card: Card, model: nn.Module, done: Plan) -> Card:
    original = heads_of(rebuild(card))
    heads = {name: count for name, count in heads_of(model).items() if count != original[name]}
    return dataclasses.replace(
        card,
        build=dataclasses.replace(card.build, heads=heads),
        inform=dataclasses.replace(card.inform, macs=done.macs_after),
    )


def _check_reload(model: nn.Module, target: Path, spec: Input) -> None:
    again, _ = load(target)
    image = torch.rand(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        if not torch.equal(model.eval()(image), again(image)):
            raise ArtefactError(f"{target.name}: the pruned network does not come back from its file; it was not kept")


def _search(model: nn.Module, spec: Input, config: PruneConfig) -> tuple[Plan, nn.Module]:
    """Bisect the share that stays; each try prunes a copy, because rounding makes the cost a staircase."""
    if config.importance not in IMPORTANCES:
        raise unknown_name("importance", config.importance, IMPORTANCES)
    before = count_macs(model, spec)
    low, high, floor = 0.0, 1.0, before
    best: tuple[Plan, nn.Module] | None = None
    for _ in range(8):
        keep = (low + high) / 2
        candidate = copy.deepcopy(model).eval()
        with _understood(model):
            steps = _apply(candidate, spec, config, keep)
            after = count_macs(candidate, spec)
        if after <= config.goal[1] * before:
            low, best = keep, (Plan(keep=keep, steps=steps, macs_before=before, macs_after=after), candidate)
        else:
            high = keep
            floor = after
    if best is None:
        raise UsageError(
            f"the narrowest layers still leave {floor / before:.0%} of the multiply-accumulates, "
            f"{config.goal[1]:.0%} is out of reach; raise prune.macs or lower prune.round_to ({config.round_to})"
        )
    return best


def _apply(model: nn.Module, spec: Input, config: PruneConfig, keep: float) -> tuple[Step, ...]:
    """Prune `model` in place."""
    score = IMPORTANCES[config.importance](config.seed)
    names = {module: name for name, module in model.named_modules()}
    with _quiet_autograd():
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=torch.zeros(2, *spec.shape))
        steps = []
        for part in list(_parts(model, graph, score, config.round_to, keep)):
            if not part.doomed:
                continue
            channels = [index * part.width + offset for index in part.doomed for offset in range(part.width)]
            group = graph.get_pruning_group(part.root, part.function, idxs=channels)
            if not graph.check_pruning_group(group):
                raise ArtefactError(f"pruning {names[part.root]} would leave a layer without channels")
            group.prune()
            after = part.units - len(part.doomed)
            steps.append(Step(layer=names[part.root], unit=part.kind, before=part.units, after=after))
    for module in attentions(model).values():
        set_heads(module, qkv_width(module) // (3 * int(module.head_dim)))  # type: ignore[arg-type]
    return tuple(steps)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """One group of coupled layers and what of it is to go."""

    root: nn.Module
    function: Any
    """torch-pruning's function that removes the root's channels."""
    kind: str
    units: int
    width: int
    """Channels per unit."""
    doomed: list[int]
    """Units to remove."""


def _parts(model: nn.Module, graph: tp.DependencyGraph, score: Score, round_to: int, keep: float) -> Iterator[_Part]:
    with torch.no_grad():
        for attention in attentions(model).values():
            # Rooted at the projection's input, where a head's features stand side by side; the graph maps them to
            # the three parts of the fused qkv layer.
            root = attention.get_submodule("proj")
            function = tp.prune_linear_in_channels
            heads = int(attention.num_heads)  # type: ignore[arg-type]
            width = qkv_width(attention) // (3 * heads)
            group = graph.get_pruning_group(root, function, idxs=list(range(heads * width)))
            doomed = _least(score(group).view(heads, width).mean(1), keep, 1)
            yield _Part(root=root, function=function, kind="head", units=heads, width=width, doomed=doomed)
        kind = "hidden unit" if attentions(model) else "channel"
        for group in graph.get_all_groups(ignored_layers=_kept(model), root_module_types=[nn.Conv2d, nn.Linear]):
            _refuse_grouped(model, group)
            target, scores = group[0].dep.target.module, score(group)
            function, doomed = group[0].dep.handler, _least(scores, keep, round_to)
            yield _Part(root=target, function=function, kind=kind, units=len(scores), width=1, doomed=doomed)


def _least(scores: torch.Tensor, keep: float, round_to: int) -> list[int]:
    """The least important units; what stays is rounded up to a multiple of `round_to` and is never nothing."""
    total = len(scores)
    stay = min(total, max(1, math.ceil(keep * total / round_to)) * round_to)
    return sorted(torch.argsort(scores.cpu(), stable=True)[: total - stay].tolist())


def _kept(model: nn.Module) -> list[nn.Module]:
    """Layers whose outputs are not pruned: the logits; in a transformer all but the first layer of each MLP."""
    kept: list[nn.Module] = list(last_layers(model))
    if attentions(model):
        kept += [
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and not name.endswith("mlp.fc1")
        ]
    return kept


def _refuse_grouped(model: nn.Module, group: Any) -> None:
    for dependency, _ in group:
        module = dependency.target.module
        if isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels:
            name = next(name for name, other in model.named_modules() if other is module)
            raise ArtefactError(
                f"{name} is a grouped convolution ({module.groups} groups), which cannot be pruned yet; "
                "export the network unpruned (make train export, or pocketzoo export"
            )


def _random_score(seed: int) -> Score:
    source = random.Random(seed)
    return lambda group: torch.tensor([source.random() for _ in range(len(group[0].idxs))])


@contextmanager
def _understood(model: nn.Module) -> Iterator[None]:
    """Wrong couplings show when a layer is indexed out of its bounds, or when the pruned model is run."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        raise ArtefactError(
            f"{type(model).__name__} cannot be pruned: the dependency graph missed a coupling of its layers ({error})"
        ) from error


@contextmanager
def _quiet_autograd() -> Iterator[None]:
    """torch-pruning traces autograd's graph, and warns and logs about parameters that it handles by convention."""
    logger = logging.getLogger("torch_pruning")
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.filterwarnings("ignore", module="torch_pruning")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
