"""The live models of one worker: what is in memory, which version answers, and how that changes without a lost request.

The models' folder is looked at regularly. A file that is new, or was changed, is loaded and checked beside the version
that answers, and then takes its place; a request that has begun keeps the version it began with. A file that fails
leaves the old version where it is; after a restart, the latest version that worked is taken from the state folder. A
file that is gone twice in a row takes its model with it, but for the default: it answers until another can. A default
that was set by name stays.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import Any

from serve.models.folder import no_artefact
from serve.models.listing import describe
from serve.models.loader import Live, OnEvent, Report
from serve.models.model import Model
from serve.models.snapshot import without
from serve.models.state import Split, Target
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.base.errors import ArtefactError, unknown_name

__all__ = ["OnEvent", "Report", "Repository"]

_STATE_SECONDS = 1.0
"""How often the state is looked at where the folder is not."""
_STOP_SECONDS = 10.0

_log = logging.getLogger("bentoml.pocketzoo")


class Repository:
    """The models of `settings.models`. Reading takes no lock; changes are made one at a time.

    What changes or reads files says so: call it in a thread.
    """

    def __init__(self, settings: Settings, *, on_event: OnEvent | None = None) -> None:
        """Nothing is loaded before :meth:`start`."""
        self._settings = settings
        self._live = Live(settings, on_event)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def default(self) -> str:
        """Name of the model that answers a request that names none."""
        return self._live.view.default

    def names(self) -> tuple[str, ...]:
        """Every model's name, in alphabetical order."""
        return tuple(self._live.view.artefacts)

    @property
    def loaded(self) -> int:
        """How many models are in memory."""
        return len(self._live.view.versions)

    def describe(self, *, operator: bool = False) -> dict[str, Any]:
        """Every model, as :class:`serve.protocols.schema.ModelsResponse` says it; reads files.

        Args:
            operator: add what only operators decide: pin, split and shadow.
        """
        return describe(self._live.view, self._live.store, self._live.reason, operator=operator)

    def start(self) -> None:
        """Load the default model, and begin to look for changes.

        The default is `settings.default_model`, else the best that can be loaded: the highest validation accuracy, then
        the smallest file. One that was not measured comes last.

        Raises:
            UsageError: `settings.default_model` is not a model.
            ArtefactError: the default model, or without a setting every model, fails to load or its self-check.
        """
        with self._live.changing:
            artefacts = self._live.scan()
            if not artefacts:
                raise no_artefact(self._settings.models)
            self._live.view = replace(self._live.view, artefacts=artefacts)
            wanted = self._settings.default_model
            if wanted is not None and wanted not in artefacts:
                raise unknown_name("model in POCKETZOO_DEFAULT_MODEL", wanted, artefacts)
            try:
                default = self._live.open(wanted, None).name if wanted else self._live.open_best()
            except Refused as error:
                raise ArtefactError(str(error)) from error
            self._live.view = replace(self._live.view, default=default)
        self._thread = threading.Thread(target=self._watch, name="models", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look for changes no longer; what is in memory can still be used."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)

    def get(self, name: str | None, version: str | None = None) -> Model | None:
        """The model of that name (None: the default), if it is in memory; :meth:`load` it if the answer is None.

        Raises:
            Refused: 404 if there is none of that name (lists close matches), 503 if it cannot be served.
        """
        return self._live.view.get(name, version)

    def route(
        self, name: str | None, version: str | None = None, *, unit: float = 1.0, force: str | None = None
    ) -> Model | None:
        """What answers a request: :meth:`get`, after the model's traffic split.

        A canary that is not in memory, cannot be served or has got other labels is passed over, unless it is forced.

        Args:
            name: of the model that was asked for; None: the default.
            version: of it; a request that names one is not split.
            unit: drawn from [0, 1); the canary answers where it is less than the split's share.
            force: `canary` or `stable`, whatever is drawn; of no effect where there is no split.

        Returns:
            The model; None if it has to be loaded first.

        Raises:
            Refused: 400 for another `force`, 404 and 503 as :meth:`get`.
        """
        return self._live.view.route(name, version, unit, force)

    def load(
        self, name: str | None, version: str | None = None, *, unit: float = 1.0, force: str | None = None
    ) -> Model:
        """Load what :meth:`route` did not find in memory; reads files. Those who ask meanwhile wait for it.

        Raises:
            Refused: 404 if there is none of that name or version, 503 if it cannot be served.
        """
        with self._live.changing:
            model = self.route(name, version, unit=unit, force=force)
            if model is None:
                split = self._live.view.split(name, version) if force == "canary" else None
                wanted = split.target if split else Target(to=name or self.default, version=version)
                opened = self._live.open(wanted.to, wanted.version)
                model = self.route(name, version, unit=unit, force=force) or opened
            return model

    def shadow(self, model: Model) -> Model | None:
        """What sees the requests of `model`, too, to be compared; None if nothing does, or it is not in memory."""
        view = self._live.view
        target = view.state.shadows.get(model.name)
        if target is None:
            return None
        other = view.find(target)
        return other if other is not None and other is not model and other.labels == model.labels else None

    def reload(self) -> Report:
        """Look for new, changed and vanished files now, and let other workers do so; reads files.

        Raises:
            Refused: 503 if there are other workers and they cannot be told.
        """
        live = self._live
        with live.changing:
            live.adopt()
            if self._settings.workers > 1 and not self._settings.poll_seconds:
                live.count_reload()
            return live.look(patient=False)

    def rollback(self, name: str, version: str | None = None) -> Model:
        """Serve an older version, and go on doing so whatever the model's file becomes; reads files.

        Args:
            name: of the model.
            version: default: the one that was put in the models' folder before the one that is served.

        Raises:
            Refused: 404 if there is no such model or version, 503 if it fails a check or the state cannot be written.
        """
        live = self._live
        with live.changing:
            live.view.check_name(name)
            live.forgive(name)
            current = live.try_open(name)
            version = version or live.store.previous(name, current.version if current else "")
            if version is None:
                raise Refused(404, f"no older version of {name!r} is kept; {live.why_no_version(name)}")
            model = live.publish(live.read_version(name, version), current=False)
            live.decide(lambda state: replace(state, pins={**state.pins, name: model.version}))
            live.tell("rolled_back", name, f"from {current.version if current else 'nothing'} to {version}")
            return live.open(name, None)

    def unpin(self, name: str) -> Model:
        """Serve what the model's file has, again; if that fails, the version that answers stays; reads files.

        Raises:
            Refused: 404 if there is no such model, 503 if none of its versions can be served, or the state cannot be
                written.
        """
        live = self._live
        with live.changing:
            live.view.check_name(name)
            live.forgive(name)
            live.decide(lambda state: replace(state, pins=without(state.pins, name)))
            return live.open(name, None)

    def set_split(self, name: str, *, to: str, percent: float) -> None:
        """Let another model, or another version of this one, answer a share of a model's requests; reads files.

        Raises:
            UsageError: `percent` is not between 0 and 100.
            Refused: 404 if there is no such model or version, 422 if its labels differ, 503 if it cannot be served or
                the state cannot be written.
        """
        with self._live.changing:
            target = self._target(name, to)
            split = Split(to=target.to, version=target.version, percent=percent)
            self._live.decide(lambda state: replace(state, splits={**state.splits, name: split}))

    def clear_split(self, name: str) -> None:
        """Let the model answer all of its requests; writes the state.

        Raises:
            Refused: 404 if there is no such model, 503 if the state cannot be written.
        """
        with self._live.changing:
            self._live.view.check_name(name)
            self._live.decide(lambda state: replace(state, splits=without(state.splits, name)))

    def set_shadow(self, name: str, *, to: str) -> None:
        """Let another model, or another version of this one, see a model's requests, too; reads files.

        Raises:
            Refused: 404 if there is no such model or version, 422 if its labels differ, 503 if it cannot be served or
                the state cannot be written.
        """
        with self._live.changing:
            target = self._target(name, to)
            self._live.decide(lambda state: replace(state, shadows={**state.shadows, name: target}))

    def clear_shadow(self, name: str) -> None:
        """Let nothing else see the model's requests; writes the state.

        Raises:
            Refused: 404 if there is no such model, 503 if the state cannot be written.
        """
        with self._live.changing:
            self._live.view.check_name(name)
            self._live.decide(lambda state: replace(state, shadows=without(state.shadows, name)))

    def _target(self, name: str, to: str) -> Target:
        """What `to` means, loaded and checked to be comparable to the model `name`."""
        live = self._live
        live.view.check_name(name)
        is_model = to in live.view.artefacts
        target = Target(to=to) if is_model else Target(to=name, version=to)
        if not is_model and to not in (versions := live.versions(name)):
            raise Refused(404, str(unknown_name("model or version", to[:200], {*live.view.artefacts, *versions})))
        stable = live.open(name, None)
        other = live.open(target.to, target.version)
        if other is stable:
            raise Refused(422, f"{to!r} is what {name!r} serves already; name another model or version")
        if other.labels != stable.labels:
            raise Refused(
                422,
                f"{name!r} and {to!r} must have the same labels in the same order; they have "
                f"{_few(stable.card.use.labels)} and {_few(other.card.use.labels)}",
            )
        return target

    def _watch(self) -> None:
        seconds = self._settings.poll_seconds
        while not self._stopped.is_set():
            try:
                with self._live.changing:
                    self._live.adopt()
                    if seconds:
                        self._live.look(patient=True)
                    self._live.tidy()
            except Exception:
                _log.exception("cannot look for changes of the models; trying again")
            self._stopped.wait(seconds or _STATE_SECONDS)


def _few(labels: tuple[str, ...]) -> str:
    return f"{len(labels)} ({', '.join(labels[:3])}{', ...' if len(labels) > 3 else ''})"
