"""The ways to quantize one graph, and how each does beside its parent."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto

from compress.quantize import quantizer
from compress.quantize.calibration import Batches
from compress.quantize.divergence import Comparison, compare
from compress.quantize.float16 import check_activations, halve
from compress.quantize.observe import logits
from compress.quantize.sensitivity import Cost, fewest, sensitivity
from compress.quantize.targets import TARGETS, detect_target
from compress.quantize.variants import Variants
from zoo.artefact import onnx_file as graph
from zoo.artefact.card import Card
from zoo.artefact.clock import Timing, summarise
from zoo.artefact.engines.runtimes import REFERENCE
from zoo.artefact.latency import LatencyConfig, timings
from zoo.artefact.predictor import Predictor, default_providers
from zoo.base.errors import ArtefactError, CheckError
from zoo.base.progress import note
from zoo.base.statistics.intervals import FEWEST, ratio
from zoo.data.dataset import Sample
from zoo.training.recipe import QuantizeConfig

__all__ = ["Images", "Speed", "Trial", "Trials", "measure_speed", "not_timed"]

_EVALUATED_AT_ONCE = 64
_ROUNDS = (FEWEST, 3)
"""Of timing; the later ones only where the first do not tell which file is faster. With nine the interval leaves out
the slowest and the fastest. Looked at twice, files that are as fast as each other are told apart in 5.5 % of cases."""
_SECONDS = 0.1
"""Of a round; starting its process takes longer anyway."""
_RANGE_IMAGES = 64
"""On which float16 must not overflow."""
_SENSITIVITY_BATCHES = 8
"""Of eight images."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One image at a time, on all cores, beside the parent."""

    speedup: float
    """Median over the rounds of the ratio of both times."""
    speedup_low: float
    speedup_high: float
    """How sure that is; see zoo.base.statistics.intervals.ratio."""
    rounds: int
    parent_ms: float
    """Median."""
    ms: float
    parent_engine: str = REFERENCE
    engine: str = REFERENCE
    """What computed either file: what answers for it on this machine."""

    @property
    def told(self) -> bool:
        """Whether the rounds tell which of both is faster."""
        return not self.speedup_low <= 1 <= self.speedup_high


@dataclass(frozen=True, kw_only=True)
class Images:
    """What to calibrate and to compare on."""

    calibration: Sequence[Sample]
    comparison: Sequence[Sample]
    labels: npt.NDArray[np.int64] | None
    source: str
    """Where the calibration images are from, in words."""
    compared_on: str
    digest: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One quantized graph, and how its answers compare with the parent's."""

    method: str
    model: ModelProto
    comparison: Comparison
    floats: tuple[str, ...] = ()
    """Nodes that stay in float to keep the budget."""
    speed: Speed | None = None

    def keeps(self, budget: float) -> bool:
        """Whether it loses no more than `budget` points."""
        # One part in a million of a point is what is lost in adding up fractions.
        return self.comparison.drop <= budget + 1e-6


def measure_speed(parent: Path, child: Path) -> Speed:
    """Time two files in turn, a process for each round of each, in the engines that answer for them.

    Args:
        parent: an artefact.
        child: a draft with the parent's card: the engines that may answer for the parent may answer for it.
    """
    engines = Predictor(parent).engine, Predictor(child, check=False).engine
    runs = list(zip((parent, child), engines, strict=True))
    rounds: list[list[list[float]]] = [[], []]
    for count in _ROUNDS:
        more = timings(runs, LatencyConfig(rounds=count, seconds=_SECONDS))
        rounds = [[*before, *after] for before, after in zip(rounds, more, strict=True)]
        speed = _speed(summarise(rounds[0]), summarise(rounds[1]), *engines)
        if speed.told:
            break
    return speed


def _speed(parent: Timing, child: Timing, parent_engine: str, engine: str) -> Speed:
    found = ratio(parent.round_ms, child.round_ms)
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    return Speed(
        speedup=round(found.value, 3),
        speedup_low=round(low, 3),
        speedup_high=round(high, 3),
        rounds=len(parent.round_ms),
        parent_ms=round(parent.p50_ms, 3),
        ms=round(child.p50_ms, 3),
        parent_engine=parent_engine,
        engine=engine,
    )


def not_timed(goal: str) -> str:
    """Why files for this target are not timed on this machine; empty if they are."""
    cuda = default_providers()[0] == "CUDAExecutionProvider"
    if goal == "tensorrt":
        return "pocketzoo does not run TensorRT"
    if cuda != (goal == "cuda"):
        return "this machine answers on its GPU" if cuda else "this machine has no CUDA"
    here = detect_target()
    fits = goal == "cuda" or goal == here or (goal == "portable" and here == "vnni")
    return "" if fits else f"this machine's processor is of the kind {here}"


class Trials:
    """One graph, the ways to quantize it, and how each does."""

    def __init__(
        self, source: Path, proto: ModelProto, card: Card, config: QuantizeConfig, goal: str, data: Images
    ) -> None:
        self._source, self._proto, self._card, self._config, self._goal = source, proto, card, config, goal
        self._data = data
        spec = card.use.input
        self._half = config.method == "fp16" or goal == "cuda"
        self._untimed = not_timed("cuda" if self._half else goal)
        self._variants = Variants(
            proto, Batches(data.calibration, spec), TARGETS.get(goal, TARGETS["portable"]), config
        )
        # As served: with ranges that are taken while running, an answer depends on the images beside it.
        size = 1 if config.method == "dynamic" else _EVALUATED_AT_ONCE
        # Which nodes stay in float is chosen on the first half and judged on the last.
        halves = [slice(start, None, 2) for start in range(min(2, len(data.comparison)))]
        self._feeds = [Batches(data.comparison[half], spec, size=size) for half in halves]
        self._labels = None if data.labels is None else [data.labels[half] for half in halves]
        self._wanted = [logits(proto, feeds) for feeds in self._feeds]

    @property
    def prepared(self) -> ModelProto:
        """The float graph, as the quantizers see it."""
        return self._variants.prepared

    @property
    def precision(self) -> str:
        """For the card."""
        return "float16" if self._half else "int8"

    def best(self, *, analyse: bool, timed: bool) -> tuple[Trial, list[Cost]]:
        """The candidate to judge, and what each node costs, if that was measured."""
        if self._half:
            check_activations(self.prepared, Batches(self._data.comparison[:_RANGE_IMAGES], self._card.use.input))
            trial = self._try("fp16", halve(self._proto))
        else:
            method = "static" if self._config.method == "auto" else self._config.method
            if method == "static" and timed and not self._untimed:
                self._foretell()
            trial = self._try(method, self._make(method))
        costs: list[Cost] = []
        keeps = trial.keeps(self._config.max_drop)
        if trial.method == "static" and (analyse or not keeps):
            costs = self._costs()
            if not keeps:
                trial = self._mixed(costs, trial.model)
        # What breaks the budget is not published anyway, so its speed matters only where it is written all the same.
        if timed and not self._untimed and (trial.keeps(self._config.max_drop) or self._config.keep == "any"):
            trial = dataclasses.replace(trial, speed=self._speed(trial.model))
        return trial, costs

    def describe(self, trial: Trial) -> dict[str, Any]:
        """What goes into the card's lineage and the report."""
        comparison, data, settings = trial.comparison, self._data, TARGETS.get(self._goal)
        found: dict[str, Any] = {
            "method": trial.method,
            "target": self._goal,
            **(dataclasses.asdict(settings) if settings and not self._half else {}),
            "calibration_images": 0 if trial.method in ("dynamic", "fp16") else len(data.calibration),
            "calibrated_on": data.source,
            "compared_on": data.compared_on,
            "compared_images": comparison.n,
            "agreement": round(comparison.agreement, 4),
            "drop": round(comparison.drop, 3) + 0.0,
            "drop_low": round(comparison.low, 3) + 0.0,
            "drop_high": round(comparison.high, 3) + 0.0,
            "drop_of": "expected" if comparison.top1 is None else "top-1",
            "expected_drop": round(comparison.expected_drop, 3) + 0.0,
            "kl": round(comparison.kl, 6),
            "parity": float(f"{comparison.parity:.2g}"),
            "bytes": trial.model.ByteSize(),
            "parent_bytes": self._source.stat().st_size,
            "float_nodes": [] if self._half else [node.name for node in quantizer.weighted(trial.model)],
            "speedup": None,
        }
        if trial.floats and len(self._wanted) > 1:
            found["floats_chosen_on"] = len(self._wanted[0])
        if trial.speed:
            return found | dataclasses.asdict(trial.speed) | {"provider": default_providers()[0]}
        return found | {"not_timed": self._untimed or "not asked for"}

    def _make(self, method: str) -> ModelProto:
        able = [node for node in quantizer.weighted(self.prepared) if method == "static" or node.op_type != "Conv"]
        if not able:
            wanted = "convolutions or matrix products" if method == "static" else "matrix products"
            raise ArtefactError(
                f"{self._source}: nothing in this graph can be quantized: it has no {wanted} with constant weights; "
                "serve it as it is"
            )
        return self._variants.dynamic() if method == "dynamic" else self._variants.static()

    def _try(self, method: str, model: ModelProto, floats: Collection[str] = (), halves: slice = slice(None)) -> Trial:
        answers = logits(model, itertools.chain(*self._feeds[halves]))
        if not np.isfinite(answers).all():
            raise CheckError(
                f"{self._card.name}: the answers of its {method} graph are not finite; "
                "use another --method, or --target portable"
            )
        wanted = np.concatenate(self._wanted[halves])
        labels = None if self._labels is None else np.concatenate(self._labels[halves])
        found = compare(wanted, answers, temperature=self._card.use.temperature, labels=labels)
        return Trial(method=method, model=model, comparison=found, floats=tuple(floats))

    def _costs(self) -> list[Cost]:
        feeds = Batches(self._data.comparison[: 16 * _SENSITIVITY_BATCHES : 2], self._card.use.input)
        return sensitivity(
            self.prepared,
            lambda floats: self._variants.static(floats, finish=False),
            feeds,
            temperature=self._card.use.temperature,
        )

    def _mixed(self, costs: Sequence[Cost], whole: ModelProto) -> Trial:
        """As few of the costliest nodes in float as the budget needs; the nearest candidate if none of them holds.

        They are chosen on one half of the comparison images, and what comes back was compared on the other.
        """
        order = [cost.node for cost in costs]
        tried: dict[int, Trial] = {}

        def make(count: int) -> Trial:
            model = self._variants.static(order[:count]) if count else whole
            tried[count] = self._try("static", model, order[:count], slice(1))
            return tried[count]

        def holds(count: int) -> bool:
            found = make(count)
            note(
                f"{self._card.name}: {count} of {len(order)} nodes in float: {found.comparison.drop:z.2f} points lost, "
                f"{found.comparison.agreement:.1%} of answers as before"
            )
            return found.keeps(self._config.max_drop)

        make(0)
        # With everything in float nothing is quantized.
        count = fewest(len(order) - 1, holds) if len(order) > 1 else None
        found = tried[count] if count is not None else min(tried.values(), key=lambda trial: trial.comparison.drop)
        return self._try("static", found.model, found.floats, slice(-1, None))

    def _foretell(self) -> None:
        """Say before calibrating that INT8 will hardly gain, where the graph makes that likely and a draft shows it."""
        kinds = quantizer.interruptions(self.prepared)
        if not kinds:
            return
        speed = self._speed(self._variants.draft())
        if speed.speedup_low <= 1:
            listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            note(
                f"{self._card.name}: INT8 is not expected to be faster on this machine: a draft has "
                f"{speed.speedup:.2f}x the speed of FP32 ({speed.speedup_low:.2f} to {speed.speedup_high:.2f}), as no "
                f"engine computes {listed} behind its convolutions in INT8; on processors with bfloat16, the FP32 file "
                "in OpenVINO with that precision is the alternative to measure"
            )

    def _speed(self, model: ModelProto) -> Speed:
        with tempfile.TemporaryDirectory() as scratch:
            path, draft = Path(scratch) / "draft.onnx", ModelProto()
            draft.CopyFrom(model)
            graph.write(graph.strip_traces(draft), self._card, path)
            return measure_speed(self._source, path)
