"""Search for good settings of a recipe with Optuna: resumable, by several processes at once, never looking at the test.

A trial trains one run of a recipe with other values of some keys; its worth is the best validation top-1. Everything is
kept under `output/sweeps/NAME/`: study.db (SQLite), a folder per trial, best.toml, tables and images.

Akiba et al. 2019, "Optuna" (arXiv 1907.10902); the sampler is the tree-structured Parzen estimator of Bergstra et al.
2011, "Algorithms for Hyper-Parameter Optimization", section 4.
"""

from __future__ import annotations

import dataclasses
import gc
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from optuna.distributions import distribution_to_json
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from zoo.base.errors import DataError, TrainingError, UsageError, unknown_name
from zoo.base.files import sha256_file
from zoo.base.progress import note
from zoo.networks.checkpoint import read_card
from zoo.studies.sweep_report import SweepReport, write_report
from zoo.studies.sweep_space import Space, check_space, varied
from zoo.training.loop.distributed import check_alone
from zoo.training.loop.memory import memory_shortage
from zoo.training.recipe import Run
from zoo.training.recipe_text import plain_run
from zoo.training.stage import parent_of, source_of, train

__all__ = ["PRUNERS", "SweepConfig", "sweep"]

_RETRIES = 3
_LOCK = "study.lock"

PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=3),
    "none": optuna.pruners.NopPruner,
}
"""When a trial is given up: below the median of the trials before it at the same epoch (Golovin et al. 2017, Google
Vizier), or Hyperband (Li et al. 2017, arXiv 1603.06560)."""


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """How long and how to search."""

    trials: int = 20
    """Finished and pruned trials of the whole study, over all commands and processes that work on it."""
    minutes: float | None = None
    """No trial begins after so many minutes of this command."""
    pruner: str = "median"
    """A name of PRUNERS."""
    seed: int = 0
    """Of the sampler; training has its own."""

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UsageError(f"--trials must be at least 1, got {self.trials}")
        if self.minutes is not None and self.minutes <= 0:
            raise UsageError(f"--minutes must be positive, got {self.minutes:g}")
        if self.pruner not in PRUNERS:
            raise unknown_name("pruner", self.pruner, PRUNERS)


def sweep(
    recipe: Sequence[Run], run: Run, space: Space, folder: Path, config: SweepConfig, *, start: Path
) -> SweepReport:
    """Search until the study has the wanted number of trials, then report.

    The same call continues a study; several processes may share one. A trial whose process died is begun again, at
    most three times, and continues after its last finished epoch. Only the best trial's checkpoint is kept.

    Args:
        recipe: all runs, for the ancestors of a run that has a `start`.
        run: the run that is varied.
        space: key of the run -> its values; see zoo.studies.sweep_space.read_search.
        folder: of the study.
        config: how long and how.
        start: the folder of artefacts, where `run.start` is looked up.

    Raises:
        UsageError: a key that no recipe has (with close matches), a value the run does not take, the study in
            `folder` searches something else, or torchrun started this process: its processes would train one network
            with the settings of several trials.
        TrainingError: no trial was completed.
    """
    check_alone("sweep", "start it several times by itself: the processes share the study")
    check_space(run, space)
    (folder / "trials").mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    # Optuna's log and its warnings about interfaces that may change are for developers.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="The reported value is ignored because this `step=")
        study = _open_study(folder, run, space, config, start)
        while config.minutes is None or time.monotonic() - begin < 60 * config.minutes:
            if (found := _next_trial(study, folder, space, config)) is None:
                break
            trial, alive = found
            with alive:
                _run_trial(study, trial, run, folder, start)
            with FileLock(folder / _LOCK):
                _clean(study, folder)
        with FileLock(folder / _LOCK):
            return write_report(study, recipe, run, list(space), folder)


def _open_study(folder: Path, run: Run, space: Space, config: SweepConfig, start: Path) -> optuna.Study:
    """Create the study or open it, if it searches the same."""
    parent = parent_of(run, start)
    identity = {
        "recipe": plain_run(dataclasses.replace(run, data="")),
        "data": source_of(run).open().digest,
        "start": sha256_file(parent) if parent else "",
        "search space": {key: distribution_to_json(values) for key, values in space.items()},
    }
    with FileLock(folder / _LOCK):
        # Optuna's journal has no transactions: a disk that fills up would leave half a line in it.
        options = {"connect_args": {"timeout": 60}}
        storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}", engine_kwargs=options)
        study = optuna.create_study(study_name=folder.name, storage=storage, direction="maximize", load_if_exists=True)
        study.pruner = PRUNERS[config.pruner]()
        known = study.user_attrs.get("identity")
        if known is None:
            study.set_user_attr("identity", identity)
        elif known != identity:
            other = [name for name in identity if known.get(name) != identity[name]]
            raise UsageError(
                f"the study {folder.name!r} in {folder} belongs to another {' and '.join(other)}; its trials cannot be "
                "compared with these: name another --study, or remove that folder"
            )
    return study


def _next_trial(
    study: optuna.Study, folder: Path, space: Space, config: SweepConfig
) -> tuple[optuna.Trial, AcquireReturnProxy[FileLock]] | None:
    """The next trial, and the lock that tells other processes that this one lives; None if there are enough.

    Unlike Optuna's heartbeats, a lock tells at once that its process has died, and a suspended process keeps it.
    """
    with FileLock(folder / _LOCK):
        _revive(study, folder)
        trials = study.get_trials(deepcopy=False)
        # One that failed for a reason counts; one that was interrupted is waiting for its next try, or was given up.
        idle = (TrialState.WAITING, TrialState.FAIL)
        if sum(trial.state not in idle or "reason" in trial.user_attrs for trial in trials) >= config.trials:
            return None
        # Seeded by the number of trials: two processes with one seed do not try the same.
        study.sampler = optuna.samplers.TPESampler(seed=config.seed * 100_003 + len(trials), n_startup_trials=6)
        trial = study.ask(dict(space))
        return trial, _trial_lock(folder, trial.number).acquire(timeout=0)


def _revive(study: optuna.Study, folder: Path) -> None:
    """Mark trials whose process has died as failed, and queue them again."""
    retry = RetryHeartbeatStaleTrialCallback(max_retry=_RETRIES, inherit_intermediate_values=True)
    for trial in study.get_trials(states=[TrialState.RUNNING]):
        try:
            with _trial_lock(folder, trial.number).acquire(timeout=0):
                study.tell(trial.number, state=TrialState.FAIL)
        except Timeout:
            continue
        tries = len(retry.retry_history(trial)) + 1
        what = f" {tries} times; given up" if tries > _RETRIES else "; it is queued again"
        note(f"trial {trial.number} was interrupted{what}")
        retry(study, trial)


def _trial_lock(folder: Path, number: int) -> FileLock:
    return FileLock(folder / "trials" / f"{number}.lock")


def _run_trial(study: optuna.Study, trial: optuna.Trial, run: Run, folder: Path, start: Path) -> None:
    shown = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in trial.params.items()}
    note(f"trial {trial.number}: {', '.join(f'{key} = {value}' for key, value in shown.items())}")

    def on_epoch(result: Any) -> None:
        # What was done after the last state.pt is done, and reported, once more; Optuna keeps the first report.
        trial.report(result.validation_top1, result.epoch)
        if trial.should_prune():
            raise optuna.TrialPruned(f"pruned after epoch {result.epoch}")

    try:
        # The folder of a retried trial is the first one's, where its training stopped.
        settings = dataclasses.replace(
            varied(run, trial.params),
            name=f"trial-{_origin(study.get_trials(deepcopy=False)[trial.number])}",
            start=str((start / run.start).resolve()) if run.start else "",
        )
        path = train(settings, folder / "trials", on_epoch=on_epoch, test=False)
    except optuna.TrialPruned as pruned:
        study.tell(trial, state=TrialState.PRUNED)
        note(f"trial {trial.number}: {pruned}")
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
        note(f"trial {trial.number}: failed: {reason}")
    else:
        metrics = read_card(path).metrics("validation")
        assert metrics is not None
        study.tell(trial, metrics.top1)
        note(f"trial {trial.number}: validation top-1 {metrics.top1:.2%}; best so far {study.best_value:.2%}")
    # What the trial leaves behind, the next one may need.
    gc.collect()
    torch.cuda.empty_cache()


def _reason(error: Exception) -> str | None:
    """Why a training would fail again whenever it is tried; None where that is not known."""
    if isinstance(error, DataError | TrainingError | UsageError):
        return str(error)
    if (what := memory_shortage(error)) is not None:
        return f"too little memory for these settings ({what}); search smaller batches"
    return None


def _clean(study: optuna.Study, folder: Path) -> None:
    """Remove the checkpoints of all finished trials but the best one; their logs stay."""
    trials = study.get_trials(deepcopy=False)
    # An interrupted trial is failed, but its state is what its second attempt continues from.
    keep = {_origin(trial) for trial in trials if not trial.state.is_finished()}
    if any(trial.state == TrialState.COMPLETE for trial in trials):
        keep.add(_origin(study.best_trial))
    for trial in trials:
        if trial.state.is_finished() and _origin(trial) not in keep:
            place = folder / "trials" / f"trial-{_origin(trial)}"
            lock = folder / "trials" / f"{trial.number}.lock"
            for path in (*place.glob("*.safetensors"), *place.glob("*.pt"), lock):
                path.unlink(missing_ok=True)


def _origin(trial: FrozenTrial) -> int:
    """The number of the trial that this one repeats, or its own."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if first is None else first
