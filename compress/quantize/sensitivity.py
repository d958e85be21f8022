"""What each node costs when it is quantized, so that the few that cost most can stay in float.

One pass through the float and the quantized graph side by side says at which nodes noise comes in; from the noisiest
on, each is put back to float on its own, and what the answers gain is measured. That order matters only where time runs
out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto

from compress.quantize.divergence import divergence
from compress.quantize.observe import Feeds, logits, observe
from compress.quantize.quantizer import quantizable, rectified
from zoo.base.progress import track

__all__ = ["Cost", "added_noise", "fewest", "sensitivity"]

Make = Callable[[Collection[str]], ModelProto]
"""The quantized graph in which these nodes stay in float."""

_FOLLOWERS = ("Clip", "Relu", "MaxPool")
"""Quantized where their input is; nothing is gained by leaving them in float on their own."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What quantizing one node costs. A convolution goes together with the rectifier behind it."""

    node: str
    kind: str
    """Operator."""
    noise: float
    """Noise power over signal power at its output, less that at its inputs."""
    cost: float | None
    """Nats of KL divergence from the float graph's answers that its return to float saves, per image; None: no time was
    left to measure it. Below zero where errors of several nodes cancel."""


def sensitivity(
    prepared: ModelProto, make: Make, feeds: Feeds, *, temperature: float = 1.0, seconds: float = 120.0
) -> list[Cost]:
    """Measure each node, the noisiest first, and return all in the order in which they should go back to float.

    The costliest come first; then those without a measurement, the noisiest first; last those that cost nothing.

    Args:
        prepared: the float graph.
        make: quantizes it, but for some nodes.
        feeds: images to measure on, not those of the calibration.
        temperature: the float graph's, by which logits are divided before the softmax.
        seconds: after which no other node is measured.
    """
    begin = time.monotonic()
    whole = make(())
    wanted = logits(prepared, feeds)
    base = divergence(wanted, logits(whole, feeds), temperature)
    noise = added_noise(prepared, whole, feeds[:2])
    nodes = {node.name: node for node in quantizable(prepared) if node.name in noise}
    order = sorted(nodes, key=lambda name: -noise[name])
    costs: dict[str, float] = {}
    for name in track(order, total=len(order), description="Sensitivity"):
        if time.monotonic() - begin > seconds:
            break
        costs[name] = base - divergence(wanted, logits(make((name,)), feeds), temperature)
    found = [Cost(node=name, kind=nodes[name].op_type, noise=noise[name], cost=costs.get(name)) for name in order]
    return sorted(found, key=lambda entry: -(entry.cost or 0.0))


def added_noise(prepared: ModelProto, quantized: ModelProto, feeds: Feeds) -> dict[str, float]:
    """Node -> how much its quantization adds to the ratio of noise power to signal power; see :class:`Cost`."""
    shown = rectified(prepared)
    nodes = [node for node in quantizable(prepared) if node.op_type not in _FOLLOWERS]
    made = {name for node in quantized.graph.node for name in node.output}
    produced = {name for node in prepared.graph.node for name in node.output}
    wanted: dict[str, str] = {}
    for name in {name for node in nodes for name in _ends(node, shown)} & produced:
        through = f"{name}_DequantizeLinear_Output"
        if through in made or name in made:
            wanted[name] = through if through in made else name
    names = sorted(wanted)
    signal, noise = np.zeros(len(names)), np.zeros(len(names))
    both = zip(observe(prepared, names, feeds), observe(quantized, wanted.values(), feeds), strict=True)
    for before, after in both:
        signal += [float(np.square(before[name], dtype=np.float64).sum()) for name in names]
        noise += [float(np.square(before[name].astype(np.float64) - after[wanted[name]]).sum()) for name in names]
    ratios = dict(zip(names, noise / np.maximum(signal, 1e-30), strict=True))
    return {node.name: float(_added(node, shown, ratios)) for node in nodes}


def _ends(node: NodeProto, shown: Mapping[str, str]) -> list[str]:
    return [*node.input, shown.get(node.output[0], node.output[0])]


def _added(node: NodeProto, shown: Mapping[str, str], ratios: Mapping[str, float]) -> float:
    *inputs, output = _ends(node, shown)
    return ratios.get(output, 0.0) - max((ratios.get(name, 0.0) for name in inputs), default=0.0)


def fewest(count: int, holds: Callable[[int], bool]) -> int | None:
    """The smallest number from 1 to `count` for which `holds`, doubling and then halving the interval; None if none.

    It is the smallest one if whatever holds also holds for more; else one whose predecessor in the search failed.
    """
    low, high = 0, 1
    while not holds(min(high, count)):
        if high >= count:
            return None
        low, high = high, 2 * high
    high = min(high, count)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
