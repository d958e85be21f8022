"""Where a number was measured: what has to stand beside it to mean anything."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Mapping
from typing import Any

import numpy
import onnxruntime

from zoo.artefact.engines.runtimes import default_providers
from zoo.base.files import code_commit
from zoo.base.machine import installed_version, processor, total_memory

__all__ = ["environment", "environment_text", "load_average"]


@functools.cache
def environment(*packages: str) -> dict[str, Any]:
    """The machine, versions and commit.

    Args:
        packages: others whose version belongs to the number; those that are not installed are left out.
    """
    memory = total_memory()
    return processor() | {
        "memory_gb": None if memory is None else max(1, round(memory / 1e9)),
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
    memory = f", {found['memory_gb']} GB" if found.get("memory_gb") else ""
    return (
        f"{found['cpu']} ({flags}), {found['cores']} cores{memory}, {found['system']}, {found['provider']}; "
        f"{versions}; commit {found['commit']}"
    )


def load_average() -> float | None:
    """How many tasks wanted a processor in the last minute, on average; None: unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None
