"""Where a number was measured: what has to stand beside it to mean anything."""

from __future__ import annotations

import functools
import platform
from pathlib import Path
from typing import Any

import numpy
import onnxruntime

from zoo.files import code_commit
from zoo.machine import cores
from zoo.predictor import default_providers

__all__ = ["environment"]

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd")


@functools.cache
def environment() -> dict[str, Any]:
    """Processor, instruction sets, cores, versions and commit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": cores(),
        "provider": default_providers()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "numpy": numpy.__version__,
        },
        "commit": code_commit(),
    }
