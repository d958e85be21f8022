"""The processors that INT8 graphs are made for, and what each of them needs."""

from __future__ import annotations

import platform
from dataclasses import dataclass

__all__ = ["TARGETS", "Target", "detect_target"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """Quantizer settings for one family of processors."""

    unsigned_activations: bool
    reduce_range: bool
    """Whether two neighbouring 8-bit products may saturate, so that weights must be kept smaller."""
    symmetric_activations: bool = False
    pairs: bool = False
    """TensorRT's form: weights stay in float behind a pair of Q and DQ, biases in float, each consumer has a pair."""


TARGETS = {
    "portable": Target(unsigned_activations=True, reduce_range=True),
    "vnni": Target(unsigned_activations=True, reduce_range=False),
    "arm": Target(unsigned_activations=False, reduce_range=False),
    "tensorrt": Target(unsigned_activations=False, reduce_range=False, symmetric_activations=True, pairs=True),
}
"""onnxruntime.quantization.quantize_static's documentation (1.31), by instruction set; for TensorRT
onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html and docs/performance/model-optimizations/
quantization.html, "Quantization on GPU".

`portable` is what x86 without VNNI needs, and saturates on no machine; the others are a little more precise, and wrong
elsewhere."""


def detect_target() -> str:
    """The key of TARGETS that suits this machine's processor."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm"
    import cpuinfo

    flags = set(cpuinfo.get_cpu_info().get("flags", ()))
    return "vnni" if flags & {"avx512_vnni", "avx512vnni", "avx_vnni", "avxvnni"} else "portable"
