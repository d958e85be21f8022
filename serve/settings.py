"""What can be set about the server, from environment variables (`bentoml serve` takes no arguments of ours)."""

from __future__ import annotations

import difflib
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from zoo.artefact.engines.names import AUTO, preference
from zoo.base.errors import UsageError, unknown_name
from zoo.base.files import output_root
from zoo.base.machine import cores

__all__ = ["PREFIX", "Settings", "read_settings"]

PREFIX = "POCKETZOO_"

PositiveInt = Annotated[int, Meta(ge=1, le=1 << 53)]
NonNegativeInt = Annotated[int, Meta(ge=0, le=1 << 53)]
NonNegativeFloat = Annotated[float, Meta(ge=0, le=1e15)]
PositiveFloat = Annotated[float, Meta(gt=0, le=1e15)]
Probability = Annotated[float, Meta(ge=0, le=1)]


def _slots() -> int:
    return max(2, min(16, cores()))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's settings; POCKETZOO_<NAME OF THE FIELD> sets one."""

    models: Path = field(default_factory=output_root)
    """The folder whose artefacts are served; default: POCKETZOO_OUTPUT, else `output/` of this project."""
    default_model: str | None = None
    """The model that answers when a request names none; default: the one with the best validation accuracy."""
    workers: PositiveInt = 1
    """Processes. One uses all cores; more help where Python itself becomes the limit (beyond eight cores or so)."""
    threads: PositiveInt | None = None
    """Threads of one inference that runs alone; default: the cores the server may use."""
    engine: str = AUTO
    """`auto`: the fastest that passes the self-check; or names of zoo.artefact.engines.names, with commas: the first
    that is installed and has a golden answer in a model's file."""
    slots: PositiveInt = field(default_factory=_slots)
    """Requests computed at the same time in one worker, the others wait; default: the cores, 2 to 16."""
    top: PositiveInt = 5
    """Labels per answer, the most probable first."""
    abstain: Probability = 0.0
    """Answers whose highest probability is lower are marked `abstained`; 0: none."""

    max_images: PositiveInt = 32
    """Images in one request."""
    max_image_bytes: PositiveInt = 20 << 20
    """Size of one image file."""
    max_request_bytes: PositiveInt = 64 << 20
    """Size of one request's body."""
    max_buffered_bytes: PositiveInt = 128 << 20
    """Bodies in memory at the same time, of all requests of a worker."""
    max_pixels: PositiveInt = 25_000_000
    """Width x height of one image. A baseline JPEG file may have 16 times as many: it is decoded small."""
    decode_bytes: PositiveInt | None = None
    """Memory in which images are decoded, of all workers together; a pixel takes 8 bytes, of WebP 20. Default: half of
    what the machine, or the container, has left, and 4 GiB at most."""
    formats: tuple[str, ...] | None = None
    """Image formats accepted, separated by commas; default: all that zoo.artefact.decode reads."""
    queue: NonNegativeInt = 64
    """Images that may wait if they will be done within `timeout_seconds`; more may if it is within `queue_seconds`."""
    queue_seconds: NonNegativeFloat = 0.5
    """How long a request may expect to wait when it is admitted; also how long a full queue takes to drain."""
    timeout_seconds: PositiveFloat = 30.0
    """From a request's headers to its answer: a body that is not there by then gets 408, an answer 504."""

    batch: Literal["auto", "off", "on"] = "auto"
    """`on` and `off`; `auto`: on where a batch was measured to be faster than single images, on a GPU or many cores."""
    batch_size: PositiveInt = 16
    """Images of one inference, at most."""
    batch_window_ms: NonNegativeFloat = 2.0
    """How long the first image of a batch waits for more."""

    poll_seconds: NonNegativeFloat = 1.0
    """How often the folder is looked at for new files; 0: only when the server starts."""
    max_loaded: PositiveInt = 8
    """Models in memory; the one not used for longest makes room for another."""
    loaded_bytes: PositiveInt | None = None
    """Memory of the models of one worker, as their files have bytes, twice where two sessions are kept; the default
    model is loaded whatever it takes. Default: a quarter of what the machine, or the container, has left."""
    check_seconds: NonNegativeFloat = 20.0
    """How long a new file may take to be loaded and checked, in a process of its own; 0: as long as it likes, in the
    server's process."""

    keys_file: Path | None = None
    """API keys, as `pocketzoo key` writes them; default: none: anyone may predict."""
    origins: tuple[str, ...] = ()
    """Web origins whose pages may ask (CORS), separated by commas, or `*`; default: only the server's own."""
    log: Literal["json", "text", "off"] = "json"
    """One line per request: `json`, `text` or `off`."""
    page: bool = True
    """Whether there is a web page at `/`: 1 or 0."""

    def __post_init__(self) -> None:
        preference(self.engine)
        if self.formats is not None:
            _check_formats(self.formats)
        if self.max_buffered_bytes < self.max_request_bytes:
            raise UsageError(
                f"{PREFIX}MAX_BUFFERED_BYTES: expected at least POCKETZOO_MAX_REQUEST_BYTES, {self.max_request_bytes}, "
                f"got {self.max_buffered_bytes}"
            )


def _check_formats(names: tuple[str, ...]) -> None:
    from zoo.artefact.decode import FORMATS  # takes memory that the supervisor of the workers can do without

    if not names:
        raise UsageError(f"{PREFIX}FORMATS: expected at least one of {', '.join(FORMATS)}, got none")
    for name in names:
        if name not in FORMATS:
            raise unknown_name(f"format in {PREFIX}FORMATS", name, FORMATS)


_OF_OTHERS = frozenset({f"{PREFIX}CACHE", f"{PREFIX}OUTPUT", f"{PREFIX}STARTED"})
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
    for variable, text in environment.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or variable in _OF_OTHERS:
            continue
        if name not in hints:
            _refuse_slip(variable, hints)
        elif text := text.strip():
            found[name] = _words(name, text) if name in ("formats", "origins") else text
    try:
        return msgspec.convert(found, Settings, strict=False, dec_hook=lambda kind, text: kind(text))
    except msgspec.ValidationError as error:
        what, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        if choices := typing.get_args(hints[name]) if typing.get_origin(hints[name]) is Literal else ():
            what = f"expected one of {', '.join(choices)}"
        raise UsageError(
            f"{PREFIX}{name.upper()}: {what[:1].lower()}{what[1:].split(', got')[0]}, got {found[name]!r}; "
            "change it or unset it"
        ) from error


def _refuse_slip(variable: str, known: Iterable[str]) -> None:
    """Refuse POCKETZOO_MAX_PIXEL, but not POCKETZOO_PORT, which Kubernetes sets for a service of that name."""
    if variable in _GONE:
        raise UsageError(f"{variable} is no setting any more: to roll back, put the old file back; unset it")
    variables = [f"{PREFIX}{name.upper()}" for name in known]
    if close := difflib.get_close_matches(variable, variables, n=1, cutoff=0.9):
        raise UsageError(f"{variable} is no setting; did you mean {close[0]}? Unset it otherwise")


def _words(name: str, text: str) -> list[str]:
    return [word.strip() for word in (text.upper() if name == "formats" else text).split(",") if word.strip()]
