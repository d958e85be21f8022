"""The ways to quantize one graph, and how each does beside its parent."""

from __future__ import annotations

import dataclasses
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
from zoo.artefact.clock import summarise
from zoo.artefact.latency import LatencyConfig, latencies
from zoo.artefact.predictor import default_providers
from zoo.base.errors import ArtefactError, CheckError
from zoo.base.progress import note
from zoo.base.statistics.intervals import ratio
from zoo.data.dataset import Sample
from zoo.training.recipe import QuantizeConfig

__all__ = ["Images", "Speed", "Trial", "Trials", "measure_speed", "not_timed"]

_EVALUATED_AT_ONCE = 64
"""As zoo.training.evaluate.logits_of: dynamic quantization takes the range of a whole batch."""
_RANGE_IMAGES = 64
"""On which float16 must not overflow."""
_SENSITIVITY_BATCHES = 8
"""Of eight images."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One image at a time, on all cores, beside the parent."""

    speedup: float
    parent_ms: float
    """Median."""
    ms: float


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


def measure_speed(parent: Path, children: Sequence[Path]) -> list[Speed]:
    """Time files side by side as zoo.artefact.predictor runs them, one process each."""
    timings = {path: summarise(rounds) for path, rounds in latencies([parent, *children], LatencyConfig()).items()}
    return [
        Speed(
            speedup=round(ratio(timings[parent].round_ms, timings[child].round_ms).value, 3),
            parent_ms=round(timings[parent].p50_ms, 3),
            ms=round(timings[child].p50_ms, 3),
        )
        for child in children
    ]


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
        self._feeds = Batches(data.comparison, spec, size=_EVALUATED_AT_ONCE)
        self._wanted = logits(proto, self._feeds)

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
            trials = [self._try("fp16", halve(self._proto))]
        else:
            trials = [self._try(method, self._make(method)) for method in self._methods()]
        costs: list[Cost] = []
        static = next((trial for trial in trials if trial.method == "static"), None)
        keeping = [trial for trial in trials if trial.keeps(self._config.max_drop)]
        if static and (analyse or not keeping):
            costs = self._costs()
        if static and not keeping:
            mixed = self._mixed(costs, static)
            trials = [mixed]
            keeping = [mixed] if mixed.keeps(self._config.max_drop) else []
        trials = keeping or [min(trials, key=lambda trial: trial.comparison.drop)]
        # What breaks the budget is not published anyway, so its speed matters only where it is written all the same.
        if timed and not self._untimed and (keeping or self._config.keep == "any"):
            trials = self._timed(trials)
        return max(trials, key=lambda trial: (trial.speed.speedup if trial.speed else 0.0, -trial.comparison.kl)), costs

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
            "drop_of": "expected" if comparison.top1 is None else "top-1",
            "expected_drop": round(comparison.expected_drop, 3) + 0.0,
            "kl": round(comparison.kl, 6),
            "parity": float(f"{comparison.parity:.2g}"),
            "bytes": trial.model.ByteSize(),
            "parent_bytes": self._source.stat().st_size,
            "float_nodes": [] if self._half else [node.name for node in quantizer.weighted(trial.model)],
            "speedup": None,
        }
        if trial.speed:
            return found | dataclasses.asdict(trial.speed) | {"provider": default_providers()[0]}
        return found | {"not_timed": self._untimed or "not asked for"}

    def _methods(self) -> list[str]:
        if self._config.method != "auto":
            return [self._config.method]
        products = any(node.op_type != "Conv" for node in quantizer.weighted(self.prepared))
        both = quantizer.is_transformer(self.prepared) and products and self._goal != "tensorrt"
        return ["static", "dynamic"] if both else ["static"]

    def _make(self, method: str) -> ModelProto:
        able = [node for node in quantizer.weighted(self.prepared) if method == "static" or node.op_type != "Conv"]
        if not able:
            wanted = "convolutions or matrix products" if method == "static" else "matrix products"
            raise ArtefactError(
                f"{self._source}: nothing in this graph can be quantized: it has no {wanted} with constant weights; "
                "serve it as it is"
            )
        return self._variants.dynamic() if method == "dynamic" else self._variants.static()

    def _try(self, method: str, model: ModelProto, floats: Collection[str] = ()) -> Trial:
        answers = logits(model, self._feeds)
        if not np.isfinite(answers).all():
            raise CheckError(
                f"{self._card.name}: the answers of its {method} graph are not finite; "
                "use another --method, or --target portable"
            )
        found = compare(self._wanted, answers, temperature=self._card.use.temperature, labels=self._data.labels)
        return Trial(method=method, model=model, comparison=found, floats=tuple(floats))

    def _costs(self) -> list[Cost]:
        feeds = Batches(self._data.comparison[: 8 * _SENSITIVITY_BATCHES], self._card.use.input)
        return sensitivity(
            self.prepared,
            lambda floats: self._variants.static(floats, finish=False),
            feeds,
            temperature=self._card.use.temperature,
        )

    def _mixed(self, costs: Sequence[Cost], whole: Trial) -> Trial:
        """As few of the costliest nodes in float as the budget needs; the nearest candidate if none of them holds."""
        order = [cost.node for cost in costs]
        tried: dict[int, Trial] = {0: whole}

        def holds(count: int) -> bool:
            tried[count] = self._try("static", self._variants.static(order[:count]), order[:count])
            found = tried[count]
            note(
                f"{self._card.name}: {count} of {len(order)} nodes in float: {found.comparison.drop:z.2f} points lost, "
                f"{found.comparison.agreement:.1%} of answers as before"
            )
            return found.keeps(self._config.max_drop)

        # With everything in float nothing is quantized.
        count = fewest(len(order) - 1, holds) if len(order) > 1 else None
        return tried[count] if count is not None else min(tried.values(), key=lambda trial: trial.comparison.drop)

    def _timed(self, trials: Sequence[Trial]) -> list[Trial]:
        with tempfile.TemporaryDirectory() as scratch:
            drafts = []
            for index, trial in enumerate(trials):
                drafts.append(Path(scratch) / f"{index}.onnx")
                draft = ModelProto()
                draft.CopyFrom(trial.model)
                graph.write(graph.strip_traces(draft), self._card, drafts[-1])
            speeds = measure_speed(self._source, drafts)
        return [dataclasses.replace(trial, speed=speed) for trial, speed in zip(trials, speeds, strict=True)]
