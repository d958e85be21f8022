"""Everything needed to quantize one graph several times: calibrated once, its weights refined once."""

from __future__ import annotations

import functools
from collections.abc import Collection

from onnx import ModelProto
from onnxruntime.quantization.calibrate import TensorsData

from compress.quantize import quantizer
from compress.quantize.calibration import ranges
from compress.quantize.observe import Feeds
from compress.quantize.qdq_layers import Graph, layers
from compress.quantize.targets import Target
from compress.quantize.weights.bias_correction import correct
from compress.quantize.weights.refinement import refine
from zoo.base.machine import give_back_freed_memory
from zoo.training.recipe import QuantizeConfig

__all__ = ["Variants"]


class Variants:
    """Makes INT8 graphs of one float graph, with different nodes left in float."""

    def __init__(self, model: ModelProto, feeds: Feeds, target: Target, config: QuantizeConfig) -> None:
        """Prepare the graph; calibration waits until it is needed.

        Args:
            model: exported float graph; not changed.
            feeds: calibration images.
            target: settings of the processor.
            config: calibration and bias correction are read.
        """
        self._feeds, self._target, self._config = feeds, target, config
        self.prepared = quantizer.prepare(model)

    def draft(self) -> ModelProto:
        """An INT8 graph as fast as the final one: ranges are those of a single batch, weights as they come."""
        return quantizer.static(self.prepared, self._calibrate(self._feeds[:1]), self._target)

    @functools.cached_property
    def _ranges(self) -> TensorsData:
        return self._calibrate(self._feeds)

    def _calibrate(self, feeds: Feeds) -> TensorsData:
        return ranges(
            self.prepared,
            feeds,
            tensors=quantizer.to_calibrate(self.prepared, self._target),
            clip=self._config.calibration == "mse",
            symmetric=self._target.symmetric_activations,
        )

    @functools.cached_property
    def _refined(self) -> ModelProto:
        plain = quantizer.static(self.prepared, self._ranges, self._target)
        give_back_freed_memory()
        refined = refine(
            plain,
            self.prepared,
            saturates=self._target.reduce_range,
            feeds=self._feeds,
            shift_biases=self._config.bias_correction,
        )
        # The layers' statistics of a large network are as large as its weights.
        give_back_freed_memory()
        return refined

    def static(self, floats: Collection[str] = (), *, finish: bool = True) -> ModelProto:
        """Weights and activations with fixed ranges.

        Args:
            floats: names of nodes of `prepared` that stay in float.
            finish: correct the biases with those of earlier layers corrected, if the configuration says so; not needed
                to compare candidates.
        """
        model = quantizer.static(self.prepared, self._ranges, self._target, floats=floats)
        self._borrow(model, floats)
        if finish and self._config.bias_correction:
            return correct(model, self.prepared, self._feeds)
        return model

    def dynamic(self) -> ModelProto:
        """Weights of matrix products with fixed ranges, activations as they come."""
        return quantizer.dynamic(self.prepared, self._target)

    def _borrow(self, model: ModelProto, floats: Collection[str]) -> None:
        """Take over the refined weights: a layer's do not depend on which other layers are quantized."""
        refined, graph = Graph(self._refined), Graph(model)
        for layer in layers(refined, Graph(self.prepared)):
            if layer.node.name not in floats:
                for name in (layer.codes, layer.scale, layer.bias, layer.bias_scale):
                    if name is not None and name in graph.tensors:
                        graph.store(name, refined.array(name))
