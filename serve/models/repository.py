"""The live models of one worker: what is in memory, which version answers, and how that changes without a lost request.

The models' folder is looked at regularly. A file that is new, or was changed, is loaded and checked beside the version
that answers, and then takes its place; a request that has begun keeps the version it began with. A file that fails
leaves the old version where it is. A file that is gone twice in a row takes its model with it, but for the default: it
answers until another can. A default that was set by name stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from serve.models.folder import VERSION_DIGITS, no_artefact
from serve.models.loader import Live, OnEvent
from serve.models.snapshot import describe, unknown_version
from serve.protocols.http import Refused
from serve.settings import Settings
from zoo.artefact.card import Card
from zoo.base.errors import ArtefactError, PocketzooError, unknown_name

if TYPE_CHECKING:
    from serve.models.model import Model

__all__ = ["About", "OnEvent", "Repository"]

_STOP_SECONDS = 10.0

_log = logging.getLogger("bentoml.pocketzoo")


@dataclass(frozen=True, slots=True)
class About:
    """A model as its file describes it, loaded or not."""

    name: str
    version: str
    card: Card


class Repository:
    """The models of `settings.models`. Reading takes no lock; changes are made one at a time.

    What changes or reads files says so: call it in a thread.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_event: OnEvent | None = None,
        prepare: Callable[[Model], None] | None = None,
    ) -> None:
        """Nothing is loaded before :meth:`start`; `prepare` is called with each model before it answers."""
        self._settings = settings
        self._live = Live(settings, on_event, prepare)
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="models", daemon=True)

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
        return len(self._live.view.loaded)

    def describe(self) -> dict[str, Any]:
        """Every model, as :class:`serve.protocols.schema.ModelsResponse` says it; reads files."""
        return describe(self._live.view, self._live.reason)

    def about(self, name: str, version: str | None = None) -> About:
        """What is known of a model, which is not loaded for it; reads files.

        Raises:
            Refused: as :meth:`get`.
        """
        model, view = self.get(name, version), self._live.view
        if model is not None:
            return About(model.name, model.version, model.card)
        artefact = view.artefacts[name]
        try:
            card, digest = artefact.card(), artefact.digest()
        except PocketzooError as error:
            raise Refused(503, f"the model {name!r} cannot be served: {self._live.reason(error)}") from error
        found = (digest or "")[:VERSION_DIGITS]
        if version is not None and version != found:
            raise unknown_version(version, name, found)
        return About(name, found, card)

    def start(self) -> None:
        """Load the default model, and begin to look for changes.

        The default is `settings.default_model`, else the best that can be loaded: the highest validation accuracy, then
        the smallest file. One that was not measured comes last.

        Raises:
            UsageError: `settings.default_model` is not a model.
            ArtefactError: the default model, or without a setting every model, fails to load or its self-check.
        """
        with self._live.changing:
            default = self._choose(self._live.open)
            self._live.view = replace(self._live.view, default=default)
        self._thread.start()

    def check(self) -> None:
        """Make sure that :meth:`start` would succeed, in another process.

        Raises:
            UsageError: see :meth:`start`.
            ArtefactError: see :meth:`start`.
        """
        with self._live.changing:
            self._choose(self._live.vouch)

    def _choose(self, use: Callable[[str], object]) -> str:
        """Name of the default model, after using it."""
        live, wanted = self._live, self._settings.default_model
        artefacts = live.scan()
        if not artefacts:
            raise no_artefact(self._settings.models)
        live.know(artefacts)
        if wanted is not None and wanted not in artefacts:
            raise unknown_name("model in POCKETZOO_DEFAULT_MODEL", wanted, artefacts)
        try:
            if wanted is None:
                return live.open_best(use)
            use(wanted)
            return wanted
        except Refused as error:
            raise ArtefactError(str(error)) from error

    def stop(self) -> None:
        """Look for changes no longer; what is in memory can still be used."""
        self._stopped.set()
        self._wake.set()
        self._live.checks.stop()
        if self._thread.is_alive():
            self._thread.join(_STOP_SECONDS)

    def get(self, name: str | None, version: str | None = None) -> Model | None:
        """The model of that name (None: the default), if it is in memory; :meth:`load` it if the answer is None.

        Raises:
            Refused: 404 if there is none of that name (lists close matches) or another version answers to it, 503 if
                it cannot be served.
        """
        return self._live.view.get(name, version)

    def load(self, name: str | None, version: str | None = None) -> Model:
        """Load what :meth:`get` did not find in memory; reads files. Those who ask meanwhile wait for it.

        Raises:
            Refused: as :meth:`get`.
        """
        self._live.wait_for_check(name or self.default)
        with self._live.changing:
            model = self._live.open(name or self.default)
            return self.get(name, version) or model

    def look(self) -> None:
        """Look for new, changed and vanished files now, and wait for their checks."""
        with self._live.changing:
            running = self._live.look()
        while running:
            wait(running)
            with self._live.changing:
                running = self._live.settle()

    def _watch(self) -> None:
        # The server is to be ready before the files that nobody has asked for are checked.
        self._stopped.wait(self._settings.poll_seconds)
        while not self._stopped.is_set():
            self._wake.clear()
            running: list[Future[None]] = []
            try:
                with self._live.changing:
                    running = self._live.look()
            except Exception:
                _log.exception("cannot look for changes of the models; trying again")
            # Without polling, what is broken from the start is told of, and that was it.
            if not self._settings.poll_seconds and not running:
                return
            for check in running:
                check.add_done_callback(lambda _: self._wake.set())
            self._wake.wait(self._settings.poll_seconds or None)
