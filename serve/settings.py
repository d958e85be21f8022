"""What can be set about the server, from environment variables (`bentoml serve` takes no arguments of ours)."""

from __future__ import annotations

import difflib
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zoo.artefact.engines.runtimes import AUTO, preference
from zoo.artefact.preprocess import FORMATS
from zoo.base.errors import UsageError, unknown_name
from zoo.base.files import output_root
from zoo.base.machine import cores

__all__ = ["PREFIX", "Settings", "read_settings"]

PREFIX = "POCKETZOO_"

_CHOICES = {"batch": ("auto", "off", "on"), "log": ("json", "text", "off")}


def _slots() -> int:
    return max(2, min(16, cores()))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's settings; POCKETZOO_<NAME OF THE FIELD> sets one."""

    models: Path = field(default_factory=output_root)
    """The folder whose artefacts are served; default: POCKETZOO_OUTPUT, else `output/` of this project."""
    default_model: str | None = None
    """The model that answers when a request names none; default: the one with the best validation accuracy."""
    workers: int = 1
    """Processes. One uses all cores; more help where Python itself becomes the limit (beyond eight cores or so)."""
    threads: int | None = None
    """Threads of one inference that runs alone; default: the cores the server may use."""
    engine: str = AUTO
    """`auto`: the fastest that passes the self-check; or names of zoo.artefact.engines.runtimes, with commas: the first
    that is installed and has a golden answer in a model's file."""
    slots: int = field(default_factory=_slots)
    """Requests computed at the same time in one worker, the others wait; default: the cores, 2 to 16."""
    top: int = 5
    """Labels per answer, the most probable first."""
    abstain: float = 0.0
    """Answers whose highest probability is lower are marked `abstained`; 0: none."""

    max_images: int = 32
    """Images in one request."""
    max_image_bytes: int = 20 << 20
    """Size of one image file."""
    max_request_bytes: int = 64 << 20
    """Size of one request's body."""
    max_buffered_bytes: int = 128 << 20
    """Bodies in memory at the same time, of all requests of a worker."""
    max_pixels: int = 25_000_000
    """Width x height of one image. A baseline JPEG file may have 16 times as many: it is decoded small."""
    decode_bytes: int | None = None
    """Memory in which images are decoded, of all workers together; a pixel takes 8 bytes, of WebP 20. Default: half of
    what the machine, or the container, has left, and 4 GiB at most."""
    formats: tuple[str, ...] = FORMATS
    """Image formats accepted, separated by commas."""
    queue: int = 64
    """Images that may wait if they will be done within `timeout_seconds`; more may if it is within `queue_seconds`."""
    queue_seconds: float = 0.5
    """How long a request may expect to wait when it is admitted; also how long a full queue takes to drain."""
    timeout_seconds: float = 30.0
    """From a request's headers to its answer: a body that is not there by then gets 408, an answer 504."""

    batch: str = "auto"
    """`on` and `off`; `auto`: on where a batch was measured to be faster than single images, on a GPU or many cores."""
    batch_size: int = 16
    """Images of one inference, at most."""
    batch_window_ms: float = 2.0
    """How long the first image of a batch waits for more."""

    poll_seconds: float = 1.0
    """How often the folder is looked at for new files; 0: only when the server starts."""
    max_loaded: int = 8
    """Models in memory; the one not used for longest makes room for another."""
    loaded_bytes: int | None = None
    """Memory of the models of one worker, as their files have bytes, twice where two sessions are kept; the default
    model is loaded whatever it takes. Default: a quarter of what the machine, or the container, has left."""
    check_seconds: float = 20.0
    """How long a new file may take to be loaded and checked, in a process of its own; 0: as long as it likes, in the
    server's process."""

    keys_file: Path | None = None
    """API keys, as `pocketzoo key` writes them; default: none: anyone may predict."""
    origins: tuple[str, ...] = ()
    """Web origins whose pages may ask (CORS), separated by commas, or `*`; default: only the server's own."""
    log: str = "json"
    """One line per request: `json`, `text` or `off`."""
    page: int = 1
    """Whether there is a web page at `/`: 1 or 0."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise unknown_name(f"value of {PREFIX}{name.upper()}", getattr(self, name), choices)
        for name in self.formats:
            if name not in FORMATS:
                raise unknown_name(f"format in {PREFIX}FORMATS", name, FORMATS)
        preference(self.engine)
        if not 0 <= self.abstain <= 1:
            raise UsageError(f"{PREFIX}ABSTAIN: expected a probability, 0 to 1, got {self.abstain}")
        if not self.formats:
            raise UsageError(f"{PREFIX}FORMATS: expected at least one of {', '.join(FORMATS)}, got none")
        if self.timeout_seconds <= 0:
            raise UsageError(f"{PREFIX}TIMEOUT_SECONDS: expected more than 0 seconds, got {self.timeout_seconds:g}")
        if self.max_buffered_bytes < self.max_request_bytes:
            raise UsageError(
                f"{PREFIX}MAX_BUFFERED_BYTES: expected at least POCKETZOO_MAX_REQUEST_BYTES, {self.max_request_bytes}, "
                f"got {self.max_buffered_bytes}"
            )
        if self.page > 1:
            raise UsageError(f"{PREFIX}PAGE: expected 0 or 1, got {self.page}")


_OF_OTHERS = frozenset({f"{PREFIX}CACHE", f"{PREFIX}OUTPUT", f"{PREFIX}STARTED"})
_ZERO_IS_FINE = frozenset({"page", "queue"})
_GONE = frozenset({f"{PREFIX}KEEP_VERSIONS", f"{PREFIX}STATE"})
"""Settings that this server had; it keeps no state."""


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings in `environment`; an empty variable counts as not set.

    Raises:
        UsageError: a value that does not fit, a variable whose name is that of a setting but for a slip, or one of a
            setting that is no more.
    """
    hints = typing.get_type_hints(Settings)
    found: dict[str, typing.Any] = {}
    for name, kind in hints.items():
        variable = f"{PREFIX}{name.upper()}"
        if text := environment.get(variable, "").strip():
            found[name] = _READERS[_bare(kind)](variable, text)
    for variable in environment:
        name = variable.removeprefix(PREFIX)
        if name != variable and name.lower() not in hints and variable not in _OF_OTHERS:
            _refuse_slip(variable, hints)
    return Settings(**found)


def _refuse_slip(variable: str, known: Iterable[str]) -> None:
    """Refuse POCKETZOO_MAX_PIXEL, but not POCKETZOO_PORT, which Kubernetes sets for a service of that name."""
    if variable in _GONE:
        raise UsageError(f"{variable} is no setting any more: to roll back, put the old file back; unset it")
    variables = [f"{PREFIX}{name.upper()}" for name in known]
    if close := difflib.get_close_matches(variable, variables, n=1, cutoff=0.9):
        raise UsageError(f"{variable} is no setting; did you mean {close[0]}? Unset it otherwise")


def _bare(kind: typing.Any) -> typing.Any:
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return typing.get_origin(kind) or kind


def _whole(variable: str, text: str) -> int:
    least = 0 if variable.removeprefix(PREFIX).lower() in _ZERO_IS_FINE else 1
    if text.isascii() and text.isdigit() and len(text) < 16 and int(text) >= least:
        return int(text)
    raise UsageError(f"{variable}: expected a whole number of at least {least}, got {text!r}; change it or unset it")


def _number(variable: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UsageError(f"{variable}: expected a number of at least 0, got {text!r}; change it or unset it")
    return value


def _words(variable: str, text: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in text.split(",") if word.strip())
    return tuple(word.upper() for word in words) if variable == f"{PREFIX}FORMATS" else words


_READERS: dict[typing.Any, Callable[[str, str], typing.Any]] = {
    int: _whole,
    float: _number,
    str: lambda variable, text: text,
    Path: lambda variable, text: Path(text),
    tuple: _words,
}
