"""Loading, checking and swapping: everything that changes what a worker serves."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from serve.models.broken import Screen
from serve.models.folder import Artefact, look_through
from serve.models.model import VERSION_DIGITS, Model, give_back_memory, load_model, stamp
from serve.models.ranking import best_first
from serve.models.snapshot import View, without
from serve.models.state import State, StateFile, Target
from serve.models.versions import VersionStore
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.base.errors import ArtefactError, PocketzooError

__all__ = ["Live", "OnEvent", "Report"]

OnEvent = Callable[[str, str, str], None]
"""Called with a kind (loaded, swapped, refused, rolled_back, unloaded), the model's name and a sentence."""

_log = logging.getLogger("bentoml.pocketzoo")


@dataclass(kw_only=True)
class Report:
    """What one look at the models' folder found; names of models."""

    added: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    """Files that are not what they were."""
    removed: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """Name -> what is wrong with its file, although an older version may answer; also of files found broken before."""


class Live:
    """The view that requests read, and what replaces it. Whoever calls a method holds `changing`."""

    def __init__(self, settings: Settings, on_event: OnEvent | None) -> None:
        """Read the state; the models' folder is not looked at yet."""
        self.changing = threading.RLock()
        self.state = StateFile(settings.state_folder)
        self.store = VersionStore(settings.state_folder, keep=settings.keep_versions)
        self.view = View(state=self.state.now)
        self._settings = settings
        self._on_event = on_event
        self._missing: set[str] = set()
        self._hopeless: set[Target] = set()
        self._screen = Screen()
        self._unreadable: dict[str, str] = {}
        self._untidy = False

    def open(self, name: str, version: str | None) -> Model:
        """The model, from memory or loaded.

        Raises:
            Refused: 404 if there is none of that name or version, 503 if it cannot be served.
        """
        model = self.view.get(name, version)
        if model is not None:
            return model
        if version is not None:
            return self.publish(self.read_version(name, version), current=False)
        return self.publish(self._read_current(name), current=True)

    def open_best(self) -> str:
        """Name of the best model that can be loaded, after loading it.

        Raises:
            ArtefactError: none can; says why, of each.
        """
        for name in best_first(self.view, self.store):
            try:
                return self.open(name, None).name
            except Refused:
                continue
        reasons = "; ".join(f"{name}: {reason}" for (name, _), reason in sorted(self.view.failed.items()))
        raise ArtefactError(f"none of the {len(self.view.artefacts)} artefacts can be served: {reasons}")

    def read_version(self, name: str, version: str) -> Model:
        """One version, from memory, the model's file or the kept ones; the view stays as it is.

        Raises:
            Refused: 404 if there is none of that name or version, 503 if it fails a check.
        """
        if (model := self.view.get(name, version)) is not None:
            return model
        try:
            if (self.view.artefacts[name].digest() or "")[:VERSION_DIGITS] == version:
                model = load_model(name, self.view.artefacts[name].path, threads=self._settings.threads)
                if model.version == version:
                    return model
            if self.store.path(name, version) is not None:
                return self.store.load(name, version, threads=self._settings.threads)
        except PocketzooError as error:
            reason = self.reason(error)
            self.view = replace(self.view, failed={**self.view.failed, (name, version): reason})
            self.tell("refused", name, reason)
            raise Refused(503, f"version {version} of {name!r} cannot be served: {reason}") from error
        raise Refused(404, f"unknown version {version[:40]!r} of {name!r}; {self.why_no_version(name)}")

    def try_open(self, name: str) -> Model | None:
        """The model, from memory or loaded; None if it cannot be served."""
        try:
            return self.open(name, None)
        except Refused:
            return None

    def versions(self, name: str) -> list[str]:
        """Versions of a model that can be asked for: in its file, or kept."""
        found = (self.view.artefacts[name].digest() or "")[:VERSION_DIGITS]
        return [*([found] if found else []), *(kept for kept in self.store.versions(name) if kept != found)]

    def why_no_version(self, name: str) -> str:
        """Which versions are kept, or why none is, for clients."""
        return self.reason(self.store.explain(name))

    def publish(self, model: Model, *, current: bool) -> Model:
        """Let requests find a model, in one step; unload what is then too much; and return it."""
        before = self.view
        if before.versions.get((model.name, model.version)) is not model:
            self.tell("loaded", model.name, f"version {model.version} from {self.reason(str(model.path))}")
        self.view = before.with_model(model, current=current)
        while len(self.view.versions) > self._settings.max_loaded and (idle := self.view.idle(model)) is not None:
            self.view = self.view.without_model(idle)
            self.tell("unloaded", idle.name, f"version {idle.version}, the one that was not used for longest")
        # Requests that are under way still hold what has left the view, so that its memory comes free later.
        self._untidy = self._untidy or not before.versions.items() <= self.view.versions.items()
        return model

    def decide(self, change: Callable[[State], State]) -> None:
        """Change the state, of this worker and the others, and act on it.

        Raises:
            Refused: 503 if it cannot be written; then nothing has changed.
        """
        try:
            self.state.update(change)
        except ArtefactError as error:
            raise Refused(503, self.reason(error)) from error
        self.adopt()

    def count_reload(self) -> None:
        """Let other workers look at the models' folder, too.

        Raises:
            Refused: 503 if they cannot be told.
        """
        try:
            state = self.state.update(lambda state: replace(state, reloads=state.reloads + 1))
        except ArtefactError as error:
            raise Refused(503, f"other workers cannot be told: {self.reason(error)}") from error
        self.view = replace(self.view, state=replace(self.view.state, reloads=state.reloads))

    def forgive(self, name: str) -> None:
        """Try what failed of a model again when it is asked for next."""
        failed = {key: reason for key, reason in self.view.failed.items() if key[0] != name}
        self.view = replace(self.view, failed=failed)
        self._hopeless = {target for target in self._hopeless if target.to != name}

    def adopt(self) -> None:
        """Do as the state says, if another worker changed it."""
        old = self.view.state
        self.state.refresh()
        new = self.state.now
        if new == old:
            return
        self.view = replace(self.view, state=new)
        self._hopeless.clear()
        for name in sorted(self.view.current):
            if old.pins.get(name) != new.pins.get(name):
                self.follow(name)
        if new.reloads != old.reloads:
            self.look(patient=False)

    def follow(self, name: str) -> str | None:
        """Let a loaded model be what its pin, else its file says; why it stays what it was instead, if it does."""
        old = self.view.current.get(name)
        if old is None:
            return None
        pin = self.view.state.pins.get(name)
        try:
            new = self.read_version(name, pin) if pin else self._read_file(name)
        except PocketzooError as error:
            return self.reason(error)
        if new is not old:
            self.publish(new, current=True)
            self.tell("swapped", name, f"from {old.version} to {new.version}")
        return None

    def scan(self) -> dict[str, Artefact]:
        """The artefacts of the models' folder; tells what was left out of them, if it was not told before."""
        found = look_through(self._settings.models)
        for name, reason in self._screen.news(found.left_out):
            self.tell("refused", name, reason)
        return found.artefacts

    def look(self, *, patient: bool) -> Report:
        """Compare the models' folder with what is known of it, and act on every difference.

        Args:
            patient: whether a model stays until its file is missing for the second time.
        """
        report, known = Report(), self.view.artefacts
        found = self.scan()
        if not found:
            # An empty folder is a volume that is not mounted more often than it is meant.
            return report
        report.added = [name for name in found if name not in known]
        report.changed = [name for name in found if name in known and found[name].state != known[name].state]
        missing = {name for name in known if name not in found}
        gone = missing & self._missing if patient else missing
        self._missing = missing
        # What has not changed keeps its artefact: card and digest were read already.
        fresh = {name: found[name] for name in (*report.added, *report.changed)}
        self._know({**known, **fresh})
        for name in fresh:
            self.forgive(name)
        for name in report.changed:
            if name in self.view.current and name not in self.view.state.pins:
                self.follow(name)
        report.removed = [name for name in sorted(gone) if self._remove(name)]
        self._read_cards()
        failed = {name: reason for (name, version), reason in self.view.failed.items() if version is None}
        report.refused = {**failed, **self.view.problems}
        return report

    def tidy(self) -> None:
        """Load what shall take part of other models' traffic, and give memory back."""
        for target in sorted(self.view.state.targets() - self._hopeless, key=str):
            if target.to in self.view.artefacts and self.view.find(target) is None:
                try:
                    self.open(target.to, target.version)
                except Refused:
                    self._hopeless.add(target)
        if self._untidy:
            self._untidy = False
            give_back_memory()

    def tell(self, kind: str, name: str, detail: str) -> None:
        """Report an event; whoever listens cannot do harm."""
        if self._on_event is None:
            return
        try:
            self._on_event(kind, name, detail)
        except Exception:
            _log.exception("the event %s of %s cannot be reported", kind, name)

    def reason(self, error: Exception | str) -> str:
        """What went wrong, with paths as seen from the models' folder: clients read this."""
        text = str(error)
        for folder in (self._settings.state_folder, self._settings.models):
            text = text.replace(f"{folder}{os.sep}", "")
        return text

    def _read_current(self, name: str) -> Model:
        """What shall answer to a name: its pin, else its file, else the latest version that worked."""
        pin = self.view.state.pins.get(name)
        try:
            if pin is None:
                return self._read_file(name)
            try:
                return self.read_version(name, pin)
            except Refused as error:
                # An answer of the file's version is better than none; the operator sees why it is not the pinned one.
                model = self._read_file(name)
                self._note(name, f"it is pinned, but {error}")
                return model
        except PocketzooError as error:
            reason = self.reason(error)
            for version in self.store.versions(name)[:1]:
                try:
                    return self.read_version(name, version)
                except Refused:
                    continue
            self.view = replace(self.view, failed={**self.view.failed, (name, None): reason})
            raise Refused(503, f"the model {name!r} cannot be served: {reason}") from error

    def _read_file(self, name: str) -> Model:
        artefact = self.view.artefacts[name]
        known = self.view.versions.get((name, (artefact.digest() or "")[:VERSION_DIGITS]))
        try:
            model = known or load_model(name, artefact.path, threads=self._settings.threads)
        except PocketzooError as error:
            if not self._changed(artefact):
                self._note(name, self.reason(error))
                if isinstance(error.__cause__, OSError | MemoryError):
                    artefact.expire()
            raise
        self.view = replace(self.view, problems=without(self.view.problems, name))
        self.store.add(model, needed=self.view.needed(name))
        return model

    def _read_cards(self) -> None:
        """Find out which files cannot be served, of those that nobody has asked for since they changed."""
        for name in self.view.current:
            if name in self.view.artefacts and name not in self.view.state.pins:
                self._screen.pass_over(self.view.artefacts[name])
        for artefact, error in self._screen.unread(list(self.view.artefacts.values())):
            self._untidy = True
            name, told = artefact.name, self._unreadable.pop(artefact.name, None)
            if error is None:
                if told is not None and self.view.problems.get(name) == told:
                    self.view = replace(self.view, problems=without(self.view.problems, name))
            elif not self._changed(artefact):
                self._unreadable[name] = self.reason(error)
                self._note(name, self.reason(error))
                if isinstance(error.__cause__, OSError | MemoryError):
                    artefact.expire()

    def _note(self, name: str, reason: str) -> None:
        if self.view.problems.get(name) != reason:
            self.view = replace(self.view, problems={**self.view.problems, name: reason})
            self.tell("refused", name, reason)

    def _changed(self, artefact: Artefact) -> bool:
        """Whether the file is another one by now: it was being written, and is read again when it is looked at next."""
        try:
            return stamp(artefact.path) != artefact.stamp
        except OSError:
            return True

    def _know(self, artefacts: dict[str, Artefact]) -> None:
        self.view = replace(self.view, artefacts={name: artefacts[name] for name in sorted(artefacts)})

    def _remove(self, name: str) -> bool:
        """Forget a model whose file is gone; not the default, unless another can take its place."""
        if name == self.view.default:
            if self._settings.default_model is not None:
                return False
            whole = self.view
            self.view = replace(whole, artefacts=without(whole.artefacts, name))
            try:
                default = self.open_best()
            except ArtefactError:
                self.view = replace(self.view, artefacts=whole.artefacts)
                return False
            self.view = replace(self.view, default=default)
        loaded = name in self.view.current
        self.view = self.view.without_name(name)
        self._untidy = True
        if loaded:
            self.tell("unloaded", name, "its file is gone")
        return True
