"""The memory of a search, an Optuna study in SQLite, and what it tries next.

Trials are few and dear, so the sampler is the tree-structured Parzen estimator for several objectives (Ozaki et al.
2022, "Multiobjective Tree-Structured Parzen Estimator", JAIR 73), which learns from a handful; NSGA-II draws its first
generation of 50 at random. It is asked anew from what is known each time: an interrupted search draws what it would
have drawn, and what misses the goal of today is infeasible, whatever the goal was when it was tried.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from compress.prune.importance import IMPORTANCES
from compress.search.candidates import FLOAT, INT8, PRECISIONS, Candidate, Goal, Measured, Results
from zoo.base.documents import to_dataclass
from zoo.base.errors import ArtefactError

__all__ = ["EPOCHS", "SCALES", "SPACE", "Plan", "Trials"]

T = TypeVar("T")

SCALES = (1.0, 0.86, 0.71)
"""Of the input's edges: three quarters and half of the pixels."""
EPOCHS = (1, 2, 4, 8, 16)
SPACE: dict[str, BaseDistribution] = {
    "ratio": FloatDistribution(0.1, 1.0, step=0.05),
    "importance": CategoricalDistribution(tuple(IMPORTANCES)),
    "epochs": CategoricalDistribution((0, *EPOCHS)),
    "scale": CategoricalDistribution(SCALES),
    "precision": CategoricalDistribution(PRECISIONS),
}
_FIRST = ((0.5, 1.0), (0.75, 1.0), (0.5, 0.71), (0.3, 1.0))
"""Ratios and scales."""
_RANDOM = 6
"""Trials that are known before the sampler learns from them."""
_DRAWS = 200
_KILLS = 3
"""What the process died of as often is not tried again."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What may be tried now."""

    goal: Goal
    importances: Sequence[str]
    """The first is tried first; none where the network cannot be pruned."""
    precisions: Collection[str]
    sizes: Mapping[float, tuple[int, int]]
    """Scale -> height and width, of those that the network takes."""
    epochs: Sequence[int]
    """Of recovery, ascending; (0,): none."""
    seed: int = 0

    def candidate(self, params: Mapping[str, Any]) -> Candidate | None:
        """What values of SPACE mean, those that make no difference left out; None: nothing that may be tried."""
        ratio, scale, precision = round(params["ratio"], 2), params["scale"], params["precision"]
        pruned, changed = ratio < 1, ratio < 1 or scale != 1
        allowed = (
            scale in self.sizes
            and precision in self.precisions
            and (not pruned or params["importance"] in self.importances)
            and (not changed or params["epochs"] in self.epochs)
        )
        return (
            Candidate(
                size=self.sizes[scale],
                ratio=ratio,
                importance=params["importance"] if pruned else "",
                epochs=params["epochs"] if changed else 0,
                precision=precision,
            )
            if allowed
            else None
        )

    def first(self) -> Iterator[dict[str, Any]]:
        """What is tried before anything is known: the artefact itself in each precision, then what is often good."""
        usual = {"importance": next(iter(self.importances), "l2"), "epochs": self.epochs[-1]}
        for precision in PRECISIONS:
            yield usual | {"ratio": 1.0, "scale": 1.0, "precision": precision}
        fast = INT8 if INT8 in self.precisions else FLOAT
        for ratio, scale in _FIRST:
            yield usual | {"ratio": ratio, "scale": scale, "precision": fast}


class Trials:
    """The trials of one search, for one process at a time. `study` also keeps facts as user attributes."""

    def __init__(self, path: Path, identity: str) -> None:
        """Open the study `identity` in the database at `path`, or create it.

        Raises:
            ArtefactError: the file is no such database.
        """
        self._read: dict[tuple[int, str], Any] = {}
        # Optuna's log is for developers.
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            self.study = optuna.create_study(
                study_name=identity,
                storage=storage,
                directions=["maximize", "minimize"],  # top-1, share of the parent's time
                load_if_exists=True,
            )
        except DatabaseError as error:
            raise ArtefactError(
                f"{path}: not the database of a search ({error.orig}); remove it to begin anew"
            ) from error

    @property
    def all(self) -> list[FrozenTrial]:
        """In the order in which they began."""
        return self.study.get_trials(deepcopy=False)

    @property
    def facts(self) -> dict[str, Any]:
        """The study's user attributes."""
        return self.study.user_attrs

    @property
    def seconds(self) -> float:
        """Time used so far, over all sessions."""
        return float(sum(trial.user_attrs.get("seconds", 0.0) for trial in self.all) + sum(self._killed().values()))

    @property
    def results(self) -> Results:
        """All that was measured."""
        return Results(tuple(entry for _, entry in self._measured()))

    def of(self, attribute: str) -> list[tuple[Candidate, Any]]:
        """The candidates of trials that have a user attribute, and its value."""
        trials = [trial for trial in self.all if {"candidate", attribute} <= trial.user_attrs.keys()]
        return [(self._decoded(trial, "candidate", Candidate), trial.user_attrs[attribute]) for trial in trials]

    def bury(self, alive: float) -> None:
        """Mark trials whose process has died; `alive` is the Unix time of its last sign of life."""
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            if "seconds" not in trial.user_attrs:  # else it was interrupted, and has counted its time itself
                assert trial.datetime_start is not None
                spent = round(max(0.0, alive - trial.datetime_start.timestamp()), 3)
                self.study.set_user_attr("killed", self._killed() | {str(trial.number): spent})
            self.end(trial)

    def end(self, trial: FrozenTrial) -> None:
        """Close a trial as what its user attributes say."""
        if "measured" in trial.user_attrs:
            entry = self._decoded(trial, "measured", Measured)
            self.study.tell(trial.number, [entry.metrics.top1, entry.share])
        else:
            self.study.tell(
                trial.number, state=TrialState.PRUNED if "given_up" in trial.user_attrs else TrialState.FAIL
            )

    def begin(self, params: Mapping[str, Any]) -> optuna.Trial:
        """A trial of these values; of those of a session that was killed just here, if there are any."""
        self.study.enqueue_trial(dict(params))
        return self.study.ask(SPACE)

    def propose(self, plan: Plan, fits: Callable[[Candidate], bool]) -> dict[str, Any] | None:
        """Values of SPACE to try next; None if there is nothing left, or no time.

        Args:
            plan: what may be tried; of anything, the artefact itself comes first.
            fits: whether there is time for a candidate.
        """
        seen = [candidate for name in ("measured", "reason", "given_up") for candidate, _ in self.of(name)]
        killed = [c for c, number in self.of("number") if str(number) in self._killed()]
        seen += [candidate for candidate in killed if killed.count(candidate) >= _KILLS]
        for params in chain(plan.first(), self._draws(plan) if seen else ()):
            candidate = plan.candidate(params)
            if candidate is not None and candidate not in seen and (not seen or fits(candidate)):
                return dict(params)
        return None

    def estimate(self, epochs: int, epoch_seconds: float) -> float:
        """Seconds that a candidate will take, by the mean of those before it.

        Args:
            epochs: of recovery.
            epoch_seconds: of one, where none was done yet.
        """
        known = [(trial.user_attrs["seconds"], entry) for trial, entry in self._measured()]
        around = [max(0.0, seconds - entry.training_seconds) for seconds, entry in known[1:] or known]
        real = [entry.training_seconds / entry.candidate.epochs for _, entry in known if entry.training_seconds]
        epoch_seconds = statistics.mean(real) if real else epoch_seconds
        return float(statistics.mean(around) + epochs * epoch_seconds)

    def _killed(self) -> dict[str, float]:
        """Number of a trial whose process died -> its seconds."""
        return dict(self.facts.get("killed", {}))

    def _measured(self) -> list[tuple[FrozenTrial, Measured]]:
        done = [trial for trial in self.all if trial.state == TrialState.COMPLETE]
        return [(trial, self._decoded(trial, "measured", Measured)) for trial in done]

    def _decoded(self, trial: FrozenTrial, attribute: str, kind: type[T]) -> T:
        """A user attribute, which never changes."""
        key = trial.number, attribute
        if key not in self._read:
            self._read[key] = to_dataclass(kind, trial.user_attrs[attribute], f"trial {trial.number}: {attribute}")
        return cast(T, self._read[key])

    def _draws(self, plan: Plan) -> Iterator[dict[str, Any]]:
        """What the sampler suggests, duplicates and all."""
        results, known = self.results, {trial.number: entry for trial, entry in self._measured()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Not counted is what was interrupted, so that it is drawn again.
            done = sum(len(self.of(name)) for name in ("measured", "reason", "given_up"))
            seed = plan.seed * 100_003 + done
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM, multivariate=True)
            study = optuna.create_study(directions=self.study.directions, sampler=sampler)
            for trial in self.all:
                if trial.number in known:
                    entry = known[trial.number]
                    missed = {flag: over for flag, (_, over) in results.misses(entry, plan.goal).items()}
                    _learn(study, trial, [entry.metrics.top1, entry.share], missed)
                elif "given_up" in trial.user_attrs:
                    # What is known of it: its accuracy before recovery, its multiply-accumulates instead of its time.
                    share = trial.user_attrs["screened"]["macs"] / results.parent.macs
                    _learn(study, trial, [trial.user_attrs["given_up"], share], {"given up": 1.0})
            for _ in range(_DRAWS):
                yield study.ask(SPACE).params


def _learn(study: optuna.Study, trial: FrozenTrial, values: list[float], missed: dict[str, float]) -> None:
    study.add_trial(
        optuna.trial.create_trial(
            params=trial.params, distributions=SPACE, values=values, constraints=missed or {"none": 0.0}
        )
    )
