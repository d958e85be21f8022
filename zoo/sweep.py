"""Search for good settings of a recipe with Optuna: resumable, by several processes at once, never looking at the test.

A trial trains one run of a recipe with other values of some keys; its worth is the best validation top-1. Everything is
kept under `output/sweeps/NAME/`: study.db (SQLite), a folder per trial, best.toml, tables and pictures.

Akiba et al. 2019, "Optuna" (arXiv 1907.10902); the sampler is the tree-structured Parzen estimator of Bergstra et al.
2011, "Algorithms for Hyper-Parameter Optimization", section 4.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from zoo.checkpoint import read_card
from zoo.datasets.registry import DATASETS
from zoo.decode import DecodeError, decode
from zoo.distributed import check_alone
from zoo.errors import ArtefactError, DataError, TrainingError, UsageError, unknown_name
from zoo.files import CHECKPOINT, sha256_file, write_bytes
from zoo.plots import save_figure
from zoo.progress import note
from zoo.recipe import Run, read_toml
from zoo.recipe_text import plain_run, recipe_text
from zoo.train import source_of, train

__all__ = [
    "PRUNERS",
    "Correlation",
    "Range",
    "SweepConfig",
    "SweepReport",
    "best_recipe",
    "correlations",
    "read_search",
    "sweep",
]

_FOLDER = Path(__file__).parent / "recipes" / "search"
_RETRIES = 3
_FIXED = ("data", "images_per_split", "labels", "name", "split_seed", "start", "test_on", "thin")
"""Keys that decide what is measured, or on what: trials that differ in them cannot be compared."""

_DATABASE = "study.db"
_LOCK = "study.lock"

Scalar = str | int | float | bool

PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
    "hyperband": lambda: optuna.pruners.HyperbandPruner(min_resource=1, reduction_factor=3),
    "none": optuna.pruners.NopPruner,
}
"""When a trial is given up: below the median of the trials before it at the same epoch (Golovin et al. 2017, Google
Vizier), or Hyperband (Li et al. 2017, arXiv 1603.06560)."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """The values a recipe's key may take: from `low` to `high`, or one of `choices`."""

    low: float | None = None
    high: float | None = None
    step: float | None = None
    """Distance between the values; whole numbers have 1 by default."""
    log: bool = False
    """Whether every order of magnitude is equally probable."""
    choices: tuple[Any, ...] | None = None
    whole: bool = field(default=False)
    """Whether the values are whole numbers; derived from how `low` and `high` are written."""

    def __post_init__(self) -> None:
        if self.choices is not None:
            if not self.choices or self.low is not None or self.high is not None or self.step or self.log:
                raise UsageError("give `choices` with at least one value, or `low` and `high`, not both")
            return
        if self.low is None or self.high is None or not self.low < self.high:
            raise UsageError(f"expected `low` < `high` (or `choices`), got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step):
            raise UsageError("`log` wants a positive `low` and no `step`")
        if self.step is not None and self.step <= 0:
            raise UsageError(f"`step` must be positive, got {self.step:g}")

    def suggest(self, trial: optuna.Trial, key: str) -> Scalar:
        """The value that the sampler wants to see next, as Optuna stores it."""
        if self.choices is not None:
            return str(trial.suggest_categorical(key, [_literal(choice) for choice in self.choices]))
        assert self.low is not None
        assert self.high is not None
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    def examples(self) -> list[str]:
        """Extreme values as TOML, to see whether the recipe takes them."""
        if self.choices is not None:
            return [_literal(choice) for choice in self.choices]
        return [_literal(int(value) if self.whole else value) for value in (self.low, self.high) if value is not None]


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


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """How a key goes together with validation top-1 over the finished trials."""

    key: str
    importance: float | None
    """PED-ANOVA share, 0 to 1 (Watanabe et al. 2023, arXiv 2304.10255); None with fewer than two different values."""
    spearman: float | None
    """Rank correlation, -1 to 1: positive means that more of it is better. None where values have no order."""
    n: int
    """Number of trials."""
    p: float | None
    """Probability of a correlation at least as strong without any relation."""


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """What a study knows so far."""

    folder: Path
    states: Mapping[str, int]
    """Trial state (complete, pruned, fail, ...) -> number of trials."""
    best_trial: int
    best_value: float
    """Validation top-1, a fraction."""
    best_settings: Mapping[str, Scalar]
    recipe: Path
    """A recipe of the best settings."""
    correlations: tuple[Correlation, ...]
    pictures: tuple[Path, ...]


def read_search(name: str) -> dict[str, Range]:
    """The searched keys of a search file: name in zoo/recipes/search, or path of a TOML file.

    Its one table `[search]` has a key of the recipe per line: `"train.lr" = { low = 1e-5, high = 1e-2, log = true }`,
    `"train.epochs" = { low = 2, high = 10, step = 2 }` or `"train.optimizer" = { choices = ["sgd", "adamw"] }`.

    Raises:
        UsageError: no such file, not TOML, or a range that is none (names its key).
    """
    path, document = read_toml(name, _FOLDER, kind="search")
    table = document.pop("search", None)
    if document:
        raise UsageError(f"{path}: {unknown_name('table', next(iter(document)), ['search'])}")
    if not isinstance(table, dict) or not table:
        raise UsageError(
            f'{path}: expected a table [search] with lines like "train.lr" = {{ low = 1e-5, high = 1e-2 }}'
        )
    return {key: _read_range(value, f"{path.name}: {key}") for key, value in _flat(table)}


def sweep(
    recipe: Sequence[Run], run: Run, space: Mapping[str, Range], folder: Path, config: SweepConfig, *, start: Path
) -> SweepReport:
    """Search until the study has the wanted number of trials, then report.

    The same call continues a study; several processes may share one. A trial whose process died is begun again, at
    most three times, and continues after its last finished epoch. Only the best trial's checkpoint is kept.

    Args:
        recipe: all runs, for the ancestors of a run that has a `start`.
        run: the run that is varied.
        space: key of the run -> range.
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
    for key, values in space.items():
        if key in _FIXED:
            raise UsageError(f"{key!r} cannot be searched: trials on other data say nothing about each other")
        for example in values.examples():
            _varied(run, {key: example})
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    with _quiet():
        study = _open_study(folder, run, space, config, start)
        while config.minutes is None or time.monotonic() - begin < 60 * config.minutes:
            with _next_trial(study, folder, space, config) as trial:
                if trial is None:
                    break
                _run_trial(study, trial, run, space, folder, start)
            with FileLock(folder / _LOCK):
                _clean(study, folder)
        return _report(study, recipe, run, space, folder)


def best_recipe(recipe: Sequence[Run], run: Run, settings: Mapping[str, Scalar], title: Sequence[str]) -> bytes:
    """A recipe file of a run with other settings, called `NAME-best`, after the runs that it starts from.

    Args:
        recipe: the runs among which the ancestors are.
        run: the one that is varied.
        settings: key -> value.
        title: lines of the comment on top.
    """
    best = dataclasses.replace(_varied(run, settings), name=f"{run.artefact}-best")
    chain = [best]
    while chain[0].start:
        chain.insert(0, next(entry for entry in recipe if entry.artefact == chain[0].start))
    return recipe_text([_from_anywhere(entry) for entry in chain], title)


def _from_anywhere(run: Run) -> Run:
    """The run with whole paths of its files and folders: relative ones mean something else in another directory."""
    return dataclasses.replace(
        run,
        data=_whole(run.data),
        test_on=_whole(run.test_on),
        weights=str(Path(run.weights).resolve()) if Path(run.weights).is_file() else run.weights,
    )


def _whole(data: str) -> str:
    return str(Path(data).resolve()) if data and data not in DATASETS and Path(data).is_dir() else data


def correlations(study: optuna.Study, keys: Sequence[str]) -> list[Correlation]:
    """Importance and signed rank correlation of each key, over the completed trials."""
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    varied = [key for key in keys if len({trial.params[key] for trial in trials}) > 1]
    shares: Mapping[str, float] = {}
    if len({trial.value for trial in trials}) > 1 and varied:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    return [_correlation(key, shares.get(key), trials) for key in keys]


def _correlation(key: str, importance: float | None, trials: Sequence[FrozenTrial]) -> Correlation:
    values = [_number(trial.params[key]) for trial in trials]
    worth = [trial.value for trial in trials]
    if len(trials) < 3 or None in values or len(set(values)) < 2 or len(set(worth)) < 2:
        return Correlation(key=key, importance=importance, spearman=None, n=len(trials), p=None)
    found = spearmanr(values, worth)
    return Correlation(
        key=key, importance=importance, spearman=float(found.statistic), n=len(trials), p=float(found.pvalue)
    )


def _number(value: Scalar) -> float | None:
    """A value with an order as a number; choices are stored as TOML literals."""
    if isinstance(value, str):
        try:
            value = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            return None
    return float(value) if isinstance(value, bool | int | float) else None


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Ranges by dotted key; TOML reads a dotted key without quotes as nested tables."""
    for key, value in table.items():
        name = f"{prefix}{key}"
        nested = isinstance(value, dict) and value and all(isinstance(entry, dict) for entry in value.values())
        if nested:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _read_range(value: Any, where: str) -> Range:
    try:
        if isinstance(value, dict) and "whole" in value:
            raise unknown_name("key", "whole", ["low", "high", "step", "log", "choices"])
        found = decode(Range, value, where)
    except DecodeError as error:
        raise UsageError(str(error)) from None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    numbers = [value[name] for name in ("low", "high", "step") if name in value]
    return dataclasses.replace(found, whole=bool(numbers) and all(isinstance(number, int) for number in numbers))


def _literal(value: Any) -> str:
    """A value as TOML: JSON is a subset of it for texts, numbers, booleans and lists of them."""
    return json.dumps(value)


def _varied(run: Run, settings: Mapping[str, Scalar]) -> Run:
    """The run with other settings, checked as a recipe is."""
    document = plain_run(run)
    for key, value in settings.items():
        _set(document, key, tomllib.loads(f"value = {value}")["value"] if isinstance(value, str) else value)
    try:
        return decode(Run, document, "search")
    except DecodeError as error:
        raise UsageError(str(error)) from None


def _set(document: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        document = document.setdefault(parent, {})
        if not isinstance(document, dict):
            raise UsageError(f"search key {key!r}: {parent!r} is no table of the recipe")
    document[last] = value


def _open_study(folder: Path, run: Run, space: Mapping[str, Range], config: SweepConfig, start: Path) -> optuna.Study:
    """Create the study or open it, if it searches the same."""
    parent = start / run.start / CHECKPOINT
    if run.start and not parent.is_file():
        raise ArtefactError(f"{run.artefact} starts from {run.start}, but there is no {parent}; train that first")
    dataset = source_of(run).open()
    identity = {
        "recipe": _fingerprint(plain_run(dataclasses.replace(run, data=""))),
        "data": dataset.digest,
        "start": sha256_file(parent) if run.start else "",
        "search space": _fingerprint({key: dataclasses.asdict(values) for key, values in space.items()}),
    }
    with FileLock(folder / _LOCK):
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{folder / _DATABASE}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
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


def _fingerprint(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _next_trial(
    study: optuna.Study, folder: Path, space: Mapping[str, Range], config: SweepConfig
) -> Iterator[optuna.Trial | None]:
    """The next trial, locked while it runs so that other processes see it is alive; None if there are enough."""
    mine: FileLock | None = None
    trial: optuna.Trial | None = None
    with FileLock(folder / _LOCK):
        _revive(study, folder)
        states = [entry.state for entry in study.get_trials(deepcopy=False)]
        taken = sum(state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING) for state in states)
        lost = sum(_is_lost(entry) for entry in study.get_trials(deepcopy=False))
        if taken + lost < config.trials:
            # Seeded by the number of trials: two processes with one seed do not try the same.
            study.sampler = optuna.samplers.TPESampler(seed=config.seed * 100_003 + len(states), n_startup_trials=6)
            trial = study.ask()
            for key, values in space.items():
                values.suggest(trial, key)
            mine = FileLock(_trial_lock(folder, trial.number))
            mine.acquire(timeout=0)
    try:
        yield trial
    finally:
        if mine is not None:
            mine.release()


def _is_lost(trial: FrozenTrial) -> bool:
    """Whether a trial counts though it has no value: its training failed, and would fail again."""
    return trial.state == TrialState.FAIL and "reason" in trial.user_attrs


def _revive(study: optuna.Study, folder: Path) -> None:
    """Mark trials whose process has died as failed, and queue them again."""
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        lock = FileLock(_trial_lock(folder, trial.number))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        study.tell(trial.number, state=TrialState.FAIL)
        lock.release()
        origin = int(trial.user_attrs.get("origin", trial.number))
        tries = int(trial.user_attrs.get("tries", 1))
        if tries > _RETRIES:
            note(f"trial {trial.number} was interrupted {tries} times; given up")
            continue
        note(f"trial {trial.number} was interrupted; it is queued again")
        values = {str(step): value for step, value in trial.intermediate_values.items()}
        study.enqueue_trial(trial.params, user_attrs={"origin": origin, "tries": tries + 1, "before": values})


def _trial_lock(folder: Path, number: int) -> Path:
    path = folder / "trials" / f"{number}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _run_trial(
    study: optuna.Study, trial: optuna.Trial, run: Run, space: Mapping[str, Range], folder: Path, start: Path
) -> None:
    origin = int(trial.user_attrs.get("origin", trial.number))
    settings: dict[str, Scalar] = {key: trial.params[key] for key in space}
    shown = ", ".join(f"{key} = {_shown(value)}" for key, value in settings.items())
    note(f"trial {trial.number}: {shown}")
    before = {int(step): value for step, value in trial.user_attrs.get("before", {}).items()}
    for step, value in before.items():
        trial.report(value, step)

    def on_epoch(result: Any) -> None:
        # state.pt is not written after every short epoch, so that some are done, and would be reported, once more.
        if result.epoch not in before:
            trial.report(result.validation_top1, result.epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        # The folder of a retried trial is the first one's, where its training stopped.
        varied = dataclasses.replace(
            _varied(run, settings),
            name=f"trial-{origin}",
            start=str((start / run.start).resolve()) if run.start else "",
        )
        path = train(varied, folder / "trials", on_epoch=on_epoch, test=False)
    except optuna.TrialPruned:
        study.tell(trial, state=TrialState.PRUNED)
        note(f"trial {trial.number}: pruned after epoch {max(_frozen(study, trial).intermediate_values)}")
        return
    except (DataError, TrainingError, UsageError) as error:
        # Settings that do not go together, or not with the data, fail again whenever they are tried.
        trial.set_user_attr("reason", str(error))
        study.tell(trial, state=TrialState.FAIL)
        note(f"trial {trial.number}: failed: {error}")
        return
    metrics = read_card(path).metrics("validation")
    assert metrics is not None
    study.tell(trial, metrics.top1)
    note(f"trial {trial.number}: validation top-1 {metrics.top1:.2%}; best so far {study.best_value:.2%}")


def _frozen(study: optuna.Study, trial: optuna.Trial) -> FrozenTrial:
    return study.get_trials(deepcopy=False)[trial.number]


def _shown(value: Scalar) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _clean(study: optuna.Study, folder: Path) -> None:
    """Remove the checkpoints of all finished trials but the best one; their logs stay."""
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    keep = {_origin(study.best_trial)} if complete else set()
    # An interrupted trial is failed, but its state is what its second attempt continues from.
    keep |= {_origin(trial) for trial in trials if trial.state in (TrialState.WAITING, TrialState.RUNNING)}
    for trial in trials:
        if trial.state.is_finished() and _origin(trial) not in keep:
            place = folder / "trials" / f"trial-{_origin(trial)}"
            for path in [*place.glob("*.safetensors"), *place.glob("*.pt")]:
                path.unlink(missing_ok=True)
            (folder / "trials" / f"{trial.number}.lock").unlink(missing_ok=True)


def _origin(trial: FrozenTrial) -> int:
    return int(trial.user_attrs.get("origin", trial.number))


def _report(
    study: optuna.Study, recipe: Sequence[Run], run: Run, space: Mapping[str, Range], folder: Path
) -> SweepReport:
    trials = study.get_trials(deepcopy=False)
    counts = {state.name.lower(): sum(trial.state == state for trial in trials) for state in TrialState}
    states = {name: count for name, count in counts.items() if count}
    if not states.get("complete"):
        reasons = [trial.user_attrs["reason"] for trial in trials if "reason" in trial.user_attrs]
        raise TrainingError(
            f"no trial of the study {folder.name!r} was completed ({states}); "
            + (f"the last one failed: {reasons[-1]}" if reasons else "give it more --minutes")
        )
    best = study.best_trial
    settings: dict[str, Scalar] = {key: best.params[key] for key in space}
    target = folder / "best.toml"
    title = [
        f"Reproduces: trial {best.number}, the best of {len(trials)} trials of the sweep {folder.name!r}.",
        f"Command:    pocketzoo train --recipe {target}",
        f"Expected:   validation top-1 {best.value:.2%}, which chose these settings and is therefore optimistic.",
    ]
    found = correlations(study, list(space))
    with FileLock(folder / _LOCK):
        write_bytes(target, best_recipe(recipe, run, settings, title))
        write_bytes(folder / "trials.csv", _trials_table(trials, list(space)))
        write_bytes(folder / "correlations.csv", _table([dataclasses.asdict(entry) for entry in found]))
        pictures = _pictures(study, found, folder)
    return SweepReport(
        folder=folder,
        states=states,
        best_trial=best.number,
        best_value=float(best.value or 0.0),
        best_settings=settings,
        recipe=target,
        correlations=tuple(found),
        pictures=tuple(pictures),
    )


def _trials_table(trials: Sequence[FrozenTrial], keys: Sequence[str]) -> bytes:
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "validation_top1": trial.value if trial.state == TrialState.COMPLETE else None,
            "epochs": len(trial.intermediate_values),
            "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else None,
            **{key: trial.params.get(key) for key in keys},
        }
        for trial in trials
    ]
    return _table(rows)


def _table(rows: Sequence[Mapping[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _pictures(study: optuna.Study, found: Sequence[Correlation], folder: Path) -> list[Path]:
    """History, parallel coordinates and importance, as far as there are trials enough for them."""
    import matplotlib

    matplotlib.use("Agg")
    import optuna.visualization.matplotlib as drawing
    from matplotlib import pyplot

    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    wanted: dict[str, Callable[[], Any]] = {
        "history.png": lambda: drawing.plot_optimization_history(study, target_name="validation top-1")
    }
    keys = [entry.key for entry in found if len({trial.params[entry.key] for trial in complete}) > 1]
    # An axis of one value has no length.
    if keys and len({trial.value for trial in complete}) > 1:
        wanted["parallel.png"] = lambda: drawing.plot_parallel_coordinate(
            study, params=keys, target_name="validation top-1"
        )
    if any(entry.importance is not None for entry in found):
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        keys_varied = [entry.key for entry in found if entry.importance is not None]
        wanted["importance.png"] = lambda: drawing.plot_param_importances(
            study, evaluator=evaluator, params=keys_varied, target_name="validation top-1"
        )
    written = []
    for name, draw in wanted.items():
        with pyplot.rc_context():
            plot = draw()
            figure = plot.figure
            _make_readable(figure, [entry.key for entry in found])
            figure.set_size_inches(max(9.0, 2.0 * len(found) + 2) if name == "parallel.png" else 9.0, 5.0)
            save_figure(figure, folder / name)
            pyplot.close(figure)
        written.append(folder / name)
    return written


def _make_readable(figure: Any, keys: Sequence[str]) -> None:
    """Names in full, values legible where lines cross them, no legend over a bar."""
    for plot in figure.axes:
        labels = [label.get_text() for label in plot.get_xticklabels()]
        if any(label.endswith("...") for label in labels):
            plot.set_xticks(plot.get_xticks(), [_in_full(label, keys) for label in labels])
        for label in plot.get_yticklabels():
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5})
        if plot.get_legend() is not None and plot.patches:
            plot.get_legend().remove()


def _in_full(label: str, keys: Sequence[str]) -> str:
    cut = label.removesuffix("...")
    return next((key for key in keys if label != cut and key.startswith(cut)), label)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's own log and its warnings about interfaces that may change are for developers."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
