"""What a worker serves at one moment, as a value: requests read it without a lock, changes replace it as a whole."""

from __future__ import annotations

import bisect
import difflib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from serve.models.folder import VERSION_DIGITS, Artefact
from serve.protocols.http import Refused
from zoo.artefact.card import Card
from zoo.base.errors import PocketzooError

if TYPE_CHECKING:
    from serve.models.model import Model

__all__ = ["View", "describe", "unknown_version", "without"]

T = TypeVar("T")
_NEIGHBOURS = 2


def without(mapping: Mapping[str, T], name: str) -> dict[str, T]:
    """`mapping` without the entry `name`, if there is one."""
    return {key: value for key, value in mapping.items() if key != name}


def unknown_version(version: str, name: str, served: str) -> Refused:
    """The error for a version that does not answer."""
    return Refused(404, f"unknown version {version[:40]!r} of {name!r}; it serves {served}")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The models of one moment; every change makes another view."""

    default: str = ""
    artefacts: Mapping[str, Artefact] = field(default_factory=dict)
    """Every known model by name, in alphabetical order, in memory or not."""
    loaded: Mapping[str, Model] = field(default_factory=dict)
    """Those in memory, by name."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Name -> what is wrong with its file, which is not read again until it changes; an older version may answer."""

    def get(self, name: str | None, version: str | None = None) -> Model | None:
        """A model in memory; None if it has to be loaded first.

        Raises:
            Refused: 404 if there is none of that name (lists close matches) or if another version answers to it, 503
                if it cannot be served.
        """
        name = name or self.default
        model = self.loaded.get(name)
        if model is None:
            self._check(name)
            return None
        if version is not None and version != model.version:
            raise unknown_version(version, name, model.version)
        model.used = time.monotonic()
        return model

    def with_model(self, model: Model) -> View:
        """The view in which that model answers to its name."""
        return replace(
            self,
            loaded={**self.loaded, model.name: model},
            problems=without(self.problems, model.name),
        )

    def without_model(self, name: str) -> View:
        """The view with that model no longer in memory."""
        return replace(self, loaded=without(self.loaded, name))

    def without_name(self, name: str) -> View:
        """The view without an artefact and everything that was known of it."""
        return replace(
            self,
            artefacts=without(self.artefacts, name),
            loaded=without(self.loaded, name),
            problems=without(self.problems, name),
        )

    def idle(self, keep: Model | None) -> Model | None:
        """The model that was not used for longest, and may leave memory.

        Not `keep`, nor the default, nor one whose file is broken by now, so that it could not be loaded again.
        """
        others = [
            model
            for name, model in self.loaded.items()
            if model is not keep and name != self.default and name not in self.problems
        ]
        return min(others, key=lambda model: model.used, default=None)

    def _check(self, name: str) -> None:
        if name not in self.artefacts:
            raise _unknown_model(name[:200], self.artefacts)
        if reason := self.problems.get(name):
            raise Refused(503, f"the model {name!r} cannot be served: {reason}")


def _unknown_model(name: str, names: Iterable[str]) -> Refused:
    ordered = sorted(names)
    place = bisect.bisect(ordered, name)
    # To compare with every name of a large folder takes longer than a prediction.
    beside = ordered[max(0, place - _NEIGHBOURS) : place + _NEIGHBOURS]
    close = difflib.get_close_matches(name, beside, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "GET /models lists what there is"
    return Refused(404, f"unknown model {name!r}; {hint}")


def describe(view: View, reason: Callable[[Exception | str], str]) -> dict[str, Any]:
    """Every model of a view. Reads, once, the files that are not loaded, for their cards and digests.

    Args:
        view: of one moment.
        reason: makes of an error what clients may read.
    """
    models = [_describe(view, artefact, reason) for artefact in view.artefacts.values()]
    return {"default": view.default, "models": models}


def _describe(view: View, artefact: Artefact, reason: Callable[[Exception | str], str]) -> dict[str, Any]:
    name, model = artefact.name, view.loaded.get(artefact.name)
    error = view.problems.get(name)
    card: Card | None = None
    try:
        card = model.card if model else artefact.card()
    except PocketzooError as caught:
        error = error or reason(caught)
    digest = model.digest if model else artefact.digest()
    return {
        "name": name,
        "file": artefact.file,
        "version": digest[:VERSION_DIGITS] if digest else None,
        "digest": digest,
        "bytes": model.bytes if model else artefact.bytes,
        "precision": card.inform.precision if card else None,
        "classes": len(card.use.labels) if card else None,
        "labels": list(card.use.labels) if card else None,
        "input": {"colour": card.use.input.colour, "size": list(card.use.input.size)} if card else None,
        "accuracy": _accuracy(card, model.alone.engine if model else None) if card else None,
        "loaded": model is not None,
        "engine": model.alone.engine if model else None,
        "engine_reason": reason(model.alone.engine_reason) if model else None,
        "error": error,
    }


def _accuracy(card: Card, engine: str | None) -> dict[str, Any] | None:
    found = card.metrics("validation", engine)
    return {"dataset": found.dataset, "split": found.split, "n": found.n, "top1": found.top1} if found else None
