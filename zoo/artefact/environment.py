"""Where a number was measured: what has to stand beside it to mean anything."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy
import onnxruntime

from zoo.artefact.engines import default_providers
from zoo.base.files import code_commit
from zoo.base.machine import cores

__all__ = ["environment", "environment_text", "installed_version", "load_average", "machine"]

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd")


@functools.cache
def machine() -> dict[str, Any]:
    """Processor, instruction sets, cores and system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


@functools.cache
def environment(*packages: str) -> dict[str, Any]:
    """The machine, versions and commit.

    Args:
        packages: others whose version belongs to the number; those that are not installed are left out.
    """
    return machine() | {
        "provider": default_providers()[0],
        "versions": {
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
            "numpy": numpy.__version__,
            **{name: found for name in ("openvino", *packages) if (found := installed_version(name))},
        },
        "commit": code_commit(),
    }


def environment_text(found: Mapping[str, Any]) -> str:
    """A line about the machine."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    flags = ", ".join(found["flags"]) or "no known vector extensions"
    return (
        f"{found['cpu']} ({flags}), {found['cores']} cores, {found['system']}, {found['provider']}; {versions}; "
        f"commit {found['commit']}"
    )


def load_average() -> float | None:
    """How many tasks wanted a processor in the last minute, on average; None: unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None


def installed_version(package: str) -> str | None:
    """Of a Python package; None: it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
