"""What a worker serves at one moment, as a value: requests read it without a lock, changes replace it as a whole."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from serve.models.folder import Artefact
from serve.models.model import Model
from serve.models.state import Split, State, Target
from serve.protocols.http import Refused
from zoo.base.errors import unknown_name

__all__ = ["FORCES", "View", "without"]

T = TypeVar("T")

FORCES = ("canary", "stable")
"""What a request may ask for where its model's traffic is split."""


def without(mapping: Mapping[str, T], name: str) -> dict[str, T]:
    """`mapping` without the entry `name`, if there is one."""
    return {key: value for key, value in mapping.items() if key != name}


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The models of one moment; every change makes another view."""

    default: str = ""
    artefacts: Mapping[str, Artefact] = field(default_factory=dict)
    """Every known model by name, in alphabetical order, in memory or not."""
    current: Mapping[str, Model] = field(default_factory=dict)
    """Those in memory, by name: what answers a request that names no version."""
    versions: Mapping[tuple[str, str], Model] = field(default_factory=dict)
    """Everything in memory, by name and version."""
    failed: Mapping[tuple[str, str | None], str] = field(default_factory=dict)
    """Why a model, or a version of it, cannot be served; it is not tried again until its file changes."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Name -> what is wrong with its file, although an older version may answer."""
    state: State = field(default_factory=State)

    def get(self, name: str | None, version: str | None) -> Model | None:
        """A model in memory; None if it has to be loaded first.

        Raises:
            Refused: 404 if there is none of that name (lists close matches), 503 if it cannot be served.
        """
        name = name or self.default
        model = self.current.get(name) if version is None else self.versions.get((name, version))
        if model is not None:
            model.used = time.monotonic()
        else:
            self._check(name, version)
        return model

    def find(self, target: Target) -> Model | None:
        """What takes part of another model's traffic, if it is in memory."""
        model = (
            self.current.get(target.to) if target.version is None else self.versions.get((target.to, target.version))
        )
        if model is not None:
            model.used = time.monotonic()
        return model

    def route(self, name: str | None, version: str | None, unit: float, force: str | None) -> Model | None:
        """What answers a request; see :meth:`serve.models.repository.Repository.route`."""
        if force is not None and force not in FORCES:
            raise Refused(400, str(unknown_name("side of a traffic split", force[:40], FORCES)))
        split = self.split(name, version)
        if split is None or force == "stable" or (force is None and unit * 100 >= split.percent):
            return self.get(name, version)
        stable = self.get(name, None)
        canary = self.find(split.target)
        if canary is None:
            return None if force and (split.to, split.version) not in self.failed else stable
        # A new version may have got other labels since the split was set.
        return canary if stable is None or stable.labels == canary.labels else stable

    def split(self, name: str | None, version: str | None) -> Split | None:
        """The traffic split that a request is subject to: one that names a version is to none."""
        return self.state.splits.get(name or self.default) if version is None else None

    def with_model(self, model: Model, *, current: bool) -> View:
        """The view with one more model in memory; where it becomes the current one, the old one leaves memory.

        Args:
            model: it.
            current: whether it answers to its name.
        """
        versions = {**self.versions, (model.name, model.version): model}
        failed = {
            key: why for key, why in self.failed.items() if key != (model.name, None if current else model.version)
        }
        if not current:
            return replace(self, versions=versions, failed=failed)
        old = self.current.get(model.name)
        if old is not None and old.version != model.version and not self._is_target(old):
            del versions[old.name, old.version]
        return replace(self, versions=versions, failed=failed, current={**self.current, model.name: model})

    def without_model(self, model: Model) -> View:
        """The view with that model no longer in memory."""
        return replace(
            self,
            current={name: other for name, other in self.current.items() if other is not model},
            versions={key: other for key, other in self.versions.items() if other is not model},
        )

    def without_name(self, name: str) -> View:
        """The view without an artefact and everything that was known of it."""
        return replace(
            self,
            artefacts=without(self.artefacts, name),
            current=without(self.current, name),
            versions={key: value for key, value in self.versions.items() if key[0] != name},
            failed={key: value for key, value in self.failed.items() if key[0] != name},
            problems=without(self.problems, name),
        )

    def idle(self, keep: Model) -> Model | None:
        """The model that was not used for longest, and may leave memory.

        Not `keep`, nor the default, nor one that takes part of another's traffic.
        """
        default = self.current.get(self.default)
        others = [
            model
            for model in self.versions.values()
            if model is not keep and model is not default and not self._is_target(model)
        ]
        return min(others, key=lambda model: model.used, default=None)

    def needed(self, name: str) -> set[str]:
        """Versions of a model that must stay on disk."""
        versions = {target.version for target in self.state.targets() if target.to == name and target.version}
        versions |= {pin for pin in (self.state.pins.get(name),) if pin}
        return versions | {model.version for model in (self.current.get(name),) if model is not None}

    def check_name(self, name: str) -> None:
        """Check that there is a model of that name.

        Raises:
            Refused: 404 if there is none; lists close matches.
        """
        if name not in self.artefacts:
            raise Refused(404, str(unknown_name("model", name[:200], self.artefacts)))

    def _is_target(self, model: Model) -> bool:
        targets = self.state.targets()
        if Target(to=model.name, version=model.version) in targets:
            return True
        return Target(to=model.name) in targets and self.current.get(model.name) is model

    def _check(self, name: str, version: str | None) -> None:
        self.check_name(name)
        if reason := self.failed.get((name, version)):
            raise Refused(503, f"the model {name!r} cannot be served: {reason}")
