"""What can be set about the server, from environment variables (`bentoml serve` takes no arguments of ours)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zoo.errors import UsageError
from zoo.files import output_root
from zoo.machine import cores

__all__ = ["Settings", "read_settings"]

_PREFIX = "POCKETZOO_"


def _default_parallel() -> int:
    return max(2, min(8, cores()))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's settings; POCKETZOO_<NAME OF THE FIELD> sets one."""

    output: Path = field(default_factory=output_root)
    """The folder whose artefacts are served; default: `output/` of this project."""
    default_model: str | None = None
    """The model that answers when a request names none; default: the one with the best validation accuracy."""
    threads: int | None = None
    """Threads of one inference; default: the cores the server may use."""
    parallel: int = field(default_factory=_default_parallel)
    """Requests computed at the same time, the others wait; default: the cores, at least 2 and at most 8."""
    top: int = 5
    """Labels per answer, the most probable first."""
    max_images: int = 32
    """Images in one request."""
    max_image_bytes: int = 20 << 20
    """Size of one image file."""
    max_request_bytes: int = 64 << 20
    """Size of one request's body."""
    max_pixels: int = 25_000_000
    """Width x height of one image; decoding takes up to six bytes per pixel in each of `parallel` requests."""


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in `environment`; an empty variable counts as not set.

    Raises:
        UsageError: a value is not a whole number of at least 1.
    """
    values = {name: environment.get(f"{_PREFIX}{name.upper()}", "").strip() for name in Settings.__dataclass_fields__}
    values = {name: value for name, value in values.items() if value}
    texts = {name: values.pop(name) for name in ("default_model", "output") if name in values}
    numbers = {name: _positive(f"{_PREFIX}{name.upper()}", value) for name, value in values.items()}
    return Settings(
        output=Path(texts["output"]) if "output" in texts else output_root(),
        default_model=texts.get("default_model"),
        **numbers,
    )


def _positive(name: str, value: str) -> int:
    if value.isascii() and value.isdigit() and len(value) < 16 and int(value) > 0:
        return int(value)
    raise UsageError(f"{name}: expected a whole number of at least 1, got {value!r}; change it or unset it")
