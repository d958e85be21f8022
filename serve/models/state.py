"""What an operator decided, shared by the workers and kept over a restart: pins, traffic splits and shadows."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serve.models.model import Stamp, stamp
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError, PocketzooError, UsageError
from zoo.base.files import write_bytes

try:
    import fcntl
except ImportError:  # Windows, where the server has one worker
    fcntl = None  # type: ignore[assignment]

__all__ = ["SCHEMA", "Split", "State", "StateFile", "Target", "from_json", "to_json"]

SCHEMA = "pocketzoo.state/1"
_FILE = "state.json"
_MAX_BYTES = 1 << 20

_log = logging.getLogger("bentoml.pocketzoo")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A model, or one version of it."""

    to: str
    """Name of the model."""
    version: str | None = None
    """None: the one that it serves at the time."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A share of one model's requests that another one, or another version of it, answers."""

    to: str
    version: str | None = None
    percent: float

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise UsageError(f"percent: expected a number from 0 to 100, got {self.percent}")

    @property
    def target(self) -> Target:
        """What answers."""
        return Target(to=self.to, version=self.version)


@dataclass(frozen=True, kw_only=True)
class State:
    """The whole document; the keys of the mappings are names of models."""

    schema: str = SCHEMA
    pins: Mapping[str, str] = field(default_factory=dict)
    """The version that is served, whatever version the model's file has."""
    splits: Mapping[str, Split] = field(default_factory=dict)
    shadows: Mapping[str, Target] = field(default_factory=dict)
    """What sees the model's requests too; its answers are only compared."""
    reloads: int = 0
    """Counts POST /admin/reload, so that every worker notices one."""

    def targets(self) -> set[Target]:
        """Everything that takes part of another model's traffic."""
        return {split.target for split in self.splits.values()} | set(self.shadows.values())


def to_json(state: State) -> str:
    """The state as JSON with sorted keys."""
    return json.dumps(asdict(state), sort_keys=True, allow_nan=False, indent=2)


def from_json(text: str) -> State:
    """Read a state.

    Raises:
        ArtefactError: not JSON, of another schema, an unknown or missing key, or a value that does not fit.
    """
    try:
        document: Any = json.loads(text)
        schema = document.get("schema") if isinstance(document, dict) else None
        if schema != SCHEMA:
            raise DocumentError(f"it has the schema {schema!r:.80}, this version reads {SCHEMA!r}")
        return to_dataclass(State, document, "state")
    except (ValueError, RecursionError, UsageError) as error:
        raise ArtefactError(f"cannot be understood: {error}") from error


class StateFile:
    """The state of a folder: `now` is what holds, :meth:`refresh` notices what other workers wrote."""

    def __init__(self, folder: Path) -> None:
        """Read the state, if there is one; the folder need not exist."""
        self.path = folder / _FILE
        self.now = State()
        self._seen: Stamp | None = None
        self._warned = ""
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> bool:
        """Read the file if it was changed, and say whether the state is another one now.

        A file that cannot be understood is warned of once, and leaves the state as it was. So does one that vanishes.
        """
        with self._lock:
            return self._refresh()

    def _refresh(self) -> bool:
        try:
            seen = stamp(self.path)
            if seen == self._seen:
                return False
            self._seen = seen
            if seen[1] > _MAX_BYTES:
                raise ArtefactError(f"has {seen[1]} bytes, at most {_MAX_BYTES} are read")
            found = from_json(self.path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (OSError, UnicodeDecodeError, PocketzooError) as error:
            if str(error) != self._warned:
                self._warned = str(error)
                _log.warning("%s: %s; what was decided before still holds; mend or delete it", self.path, error)
            return False
        changed, self.now = found != self.now, found
        return changed

    def update(self, change: Callable[[State], State]) -> State:
        """Apply `change` to the newest state, write it and return it.

        Raises:
            ArtefactError: the folder cannot be written; then nothing has changed.
        """
        with self._lock, self._alone():
            self._refresh()
            state = change(self.now)
            try:
                write_bytes(self.path, to_json(state).encode())
            except ArtefactError as error:
                raise self._unwritable(error.__cause__) from error
            self.now = state
            with contextlib.suppress(OSError):
                self._seen = stamp(self.path)
            return state

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other workers from writing: of two changes at the same time, one would be lost."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _unwritable(self, error: BaseException | None) -> ArtefactError:
        return ArtefactError(
            f"{self.path}: cannot be written ({error}); free some space or name another folder (POCKETZOO_STATE)"
        )
