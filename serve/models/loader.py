"""Loading, checking and swapping: everything that changes what a worker serves."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from serve.models.checking import Checks, how
from serve.models.folder import VERSION_DIGITS, Artefact, best_first, look_through
from serve.models.known import Known, stamp
from serve.models.snapshot import View, without
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.base.errors import ArtefactError, PocketzooError
from zoo.base.machine import available_memory, give_back_freed_memory

if TYPE_CHECKING:
    from serve.models.model import Model

__all__ = ["Live", "OnEvent"]

OnEvent = Callable[[str, str, str], None]
"""Called with a kind (loaded, swapped, refused, unloaded), the model's name and a sentence."""

_log = logging.getLogger("bentoml.pocketzoo")


class Live:
    """The view that requests read, and what replaces it. Whoever calls a method holds `changing`."""

    def __init__(self, settings: Settings, on_event: OnEvent | None, prepare: Callable[[Model], None] | None) -> None:
        """The models' folder is not looked at yet; `prepare` is called with each model before it answers."""
        self.changing = threading.RLock()
        self.view = View()
        self._settings = settings
        self._most_bytes = settings.loaded_bytes or available_memory() // 4
        self._on_event = on_event
        self._prepare = prepare
        self._missing: set[str] = set()
        self._gone: set[str] = set()
        self._unread: set[str] = set()
        self._left_out: Mapping[str, str] = {}
        self._untidy = False
        self._known = Known()
        self.checks = Checks(settings, self._known)
        self._pending: dict[str, bool] = {}

    def scan(self) -> dict[str, Artefact]:
        """The artefacts of the models' folder; tells what was left out of them, if it was not told before."""
        found = look_through(self._settings.models, self._known)
        before, self._left_out = self._left_out, found.left_out
        for name, reason in found.left_out.items():
            if before.get(name) != reason:
                self._tell("refused", name, reason)
        return found.artefacts

    def know(self, artefacts: Mapping[str, Artefact]) -> None:
        """Serve these from now on; those that nobody asks for are checked after the next :meth:`look`."""
        self.view = replace(self.view, artefacts=dict(artefacts))
        self._unread = set(artefacts)

    def open(self, name: str) -> Model:
        """The model, from memory or loaded.

        Raises:
            Refused: 404 if there is none of that name, 503 if it cannot be served.
        """
        if (model := self.view.get(name)) is not None:
            return model
        try:
            return self._publish(self._read(name))
        except PocketzooError as error:
            raise Refused(503, f"the model {name!r} cannot be served: {self.reason(error)}") from error

    def vouch(self, name: str) -> None:
        """Make sure that a model can be loaded; loads it only where that is the check.

        Raises:
            Refused: see :meth:`open`.
        """
        if not self._settings.check_seconds:
            self.open(name)
            return
        try:
            self._passed(self.view.artefacts[name])
        except PocketzooError as error:
            raise Refused(503, f"the model {name!r} cannot be served: {self.reason(error)}") from error

    def wait_for_check(self, name: str) -> None:
        """Wait until a model that is not loaded was checked, whatever comes of it; needs no lock."""
        view = self.view
        artefact = view.artefacts.get(name)
        if artefact is not None and name not in view.loaded and name not in view.problems:
            with contextlib.suppress(PocketzooError):
                self.checks.passed(artefact)

    def open_best(self, use: Callable[[str], object]) -> str:
        """Name of the best model that `use`, :meth:`open` or :meth:`vouch`, can use.

        Raises:
            ArtefactError: none can; says why, of each.
        """
        reasons = []
        for name in best_first(self.view.artefacts):
            try:
                use(name)
                return name
            except Refused as error:
                reasons.append(f"{name}: {self.view.problems.get(name, error)}")
        raise ArtefactError(f"none of the {len(reasons)} artefacts can be served: {'; '.join(sorted(reasons))}")

    def look(self) -> list[Future[None]]:
        """Compare the models' folder with what is known of it, and :meth:`settle` what is different.

        A changed file takes the place of a loaded one if it passes every check; else the old one stays. A model goes
        when its file is missing for the second time.

        Returns:
            The checks that are under way.
        """
        known, found = self.view.artefacts, self.scan()
        # An empty folder is a volume that is not mounted more often than it is meant.
        if found:
            fresh = {name for name, one in found.items() if name not in known or one.state != known[name].state}
            self._gone = self._missing & (known.keys() - found.keys())
            self._missing = known.keys() - found.keys()
            # What has not changed keeps its artefact: card and digest were read already.
            merged = {**known, **{name: found[name] for name in fresh}}
            self.view = replace(self.view, artefacts={name: merged[name] for name in sorted(merged)})
            for name in fresh | self._unread:
                self._pending[name] = self._pending.get(name, False) or name in fresh
            self._unread.clear()
        return self.settle()

    def settle(self) -> list[Future[None]]:
        """Act on the checks that are done, and begin the others.

        Returns:
            Those that are under way.
        """
        running = []
        for name, fresh in sorted(self._pending.items()):
            artefact = self.view.artefacts.get(name)
            check = self.checks.begin(artefact, soon=name in self.view.loaded) if artefact else None
            if check is not None and not check.done():
                running.append(check)
                continue
            del self._pending[name]
            if artefact is not None:
                self._act(artefact, fresh=fresh)
        while self._gone and not running:  # what may take the place of a default was checked by then
            self._remove(self._gone.pop())
        if self._untidy:
            self._untidy = False
            give_back_freed_memory(collect=False)
        return running

    def reason(self, error: Exception | str) -> str:
        """What went wrong, with paths as seen from the models' folder: clients read this."""
        return str(error).replace(f"{self._settings.models}{os.sep}", "")

    def _act(self, artefact: Artefact, *, fresh: bool) -> None:
        """Swap a loaded model if its file is another one, and note what is wrong with one that nobody has asked for."""
        name = artefact.name
        old = self.view.loaded.get(name)
        if old is None:
            self._note_check(artefact, fresh=fresh)
        elif fresh:
            try:
                new = self._read(name)
            except PocketzooError:
                return  # told and noted; the old version answers
            self._publish(new)
            if new is not old:
                self._tell("swapped", name, f"from {old.version} to {new.version}")

    def _note_check(self, artefact: Artefact, *, fresh: bool) -> None:
        """Note whether a file can be served, before anybody asks for it."""
        self._untidy = True
        try:
            self.checks.wait(artefact, soon=False)
        except PocketzooError as error:
            self._note(artefact, error)
        else:
            # Of an old file, it may be known from loading it what no card says.
            if fresh:
                self.view = replace(self.view, problems=without(self.view.problems, artefact.name))

    def _read(self, name: str) -> Model:
        """The model as its file is: the one in memory, if that is the same.

        Raises:
            PocketzooError: it fails a check.
        """
        from serve.models.model import load_model  # the engines: the supervisor of the workers does without

        artefact, old = self.view.artefacts[name], self.view.loaded.get(name)
        if old is not None and old.version == (artefact.digest() or "")[:VERSION_DIGITS]:
            return old
        self._passed(artefact)
        if old is None:
            self._make_room(artefact.bytes, more=1)
        try:
            checked = self._known.passed(artefact.path)
            model = load_model(name, artefact.path, checked=checked, **how(self._settings))
        except PocketzooError as error:
            self._note(artefact, error)
            raise
        if self._prepare is not None:
            self._prepare(model)
        return model

    def _passed(self, artefact: Artefact) -> None:
        try:
            self.checks.passed(artefact)
        except PocketzooError as error:
            self._note(artefact, error)
            raise

    def _publish(self, model: Model) -> Model:
        """Let requests find a model, in one step; unload what is then too much; and return it."""
        before = self.view
        if before.loaded.get(model.name) is not model:
            why = self.reason(f"{model.alone.path}; {model.alone.engine_reason}")
            self._tell("loaded", model.name, f"version {model.version} from {why}")
        self.view = before.with_model(model)
        self._make_room(0, keep=model)
        # Requests that are under way still hold what has left the view, so that its memory comes free later.
        self._untidy = self._untidy or not before.loaded.items() <= self.view.loaded.items()
        return model

    def _make_room(self, size: int, *, more: int = 0, keep: Model | None = None) -> None:
        """Unload what was not used for longest until `more` models of `size` bytes have room beside the others."""
        settings = self._settings

        def full() -> bool:
            loaded = self.view.loaded.values()
            taken = sum(model.memory for model in loaded)
            return len(loaded) + more > settings.max_loaded or taken + size > self._most_bytes

        while full() and (idle := self.view.idle(keep)) is not None:
            self.view = self.view.without_model(idle.name)
            self._untidy = True
            self._tell("unloaded", idle.name, f"version {idle.version}, the one that was not used for longest")

    def _note(self, artefact: Artefact, error: PocketzooError) -> None:
        """Remember, and tell once, what is wrong with a file, unless it was being written and is another one by now."""
        try:
            if stamp(artefact.path) != artefact.stamp:
                return
        except OSError:
            return
        name, reason = artefact.name, self.reason(error)
        if isinstance(error.__cause__, OSError | MemoryError):
            self.checks.forget(artefact)
            artefact.expire()
        if self.view.problems.get(name) != reason:
            self.view = replace(self.view, problems={**self.view.problems, name: reason})
            self._tell("refused", name, reason)

    def _remove(self, name: str) -> None:
        """Forget a model whose file is gone; not the default, unless another can take its place."""
        if name == self.view.default:
            if self._settings.default_model is not None:
                return
            whole = self.view
            self.view = replace(whole, artefacts=without(whole.artefacts, name))
            try:
                default = self.open_best(self.open)
            except ArtefactError:
                self.view = replace(self.view, artefacts=whole.artefacts)
                return
            self.view = replace(self.view, default=default)
        loaded = name in self.view.loaded
        self.view = self.view.without_name(name)
        self._untidy = True
        if loaded:
            self._tell("unloaded", name, "its file is gone")

    def _tell(self, kind: str, name: str, detail: str) -> None:
        """Report an event; whoever listens cannot do harm."""
        if self._on_event is None:
            return
        try:
            self._on_event(kind, name, detail)
        except Exception:
            _log.exception("the event %s of %s cannot be reported", kind, name)
