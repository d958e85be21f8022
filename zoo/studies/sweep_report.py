"""What a study knows: its best settings as a recipe, tables of trials and correlations, images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import spearmanr

from zoo.base.errors import TrainingError
from zoo.base.figures import save_figure
from zoo.base.files import write_bytes, write_table
from zoo.data.catalogue import DATASETS
from zoo.networks.weights.first_weights import absolute_weights
from zoo.studies.sweep_space import Scalar, plain, varied
from zoo.training.recipe import Run
from zoo.training.recipe_text import recipe_text

__all__ = ["Correlation", "SweepReport", "best_recipe", "correlations", "write_report"]


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


def write_report(
    study: optuna.Study, recipe: Sequence[Run], run: Run, keys: Sequence[str], folder: Path
) -> SweepReport:
    """Write best.toml, trials.csv, correlations.csv and images; arguments as for zoo.studies.sweep; `keys` searched.

    Raises:
        TrainingError: no trial was completed.
    """
    trials = study.get_trials(deepcopy=False)
    counts = Counter(trial.state for trial in trials)
    states = {state.name.lower(): counts[state] for state in TrialState if counts[state]}
    if not counts[TrialState.COMPLETE]:
        reasons = [trial.user_attrs["reason"] for trial in trials if "reason" in trial.user_attrs]
        raise TrainingError(
            f"no trial of the study {folder.name!r} was completed ({states}); "
            + (f"the last one failed: {reasons[-1]}" if reasons else "give it more --minutes")
        )
    best = study.best_trial
    settings: dict[str, Scalar] = {key: best.params[key] for key in keys}
    target = folder / "best.toml"
    title = [
        f"Reproduces: trial {best.number}, the best of {len(trials)} trials of the sweep {folder.name!r}.",
        f"Command:    pocketzoo train --recipe {target}",
        f"Expected:   validation top-1 {best.value:.2%}, which chose these settings and is therefore optimistic.",
    ]
    found = correlations(study, keys)
    write_bytes(target, best_recipe(recipe, run, settings, title))
    write_table(folder / "trials.csv", [_row(trial, keys) for trial in trials])
    write_table(folder / "correlations.csv", [dataclasses.asdict(entry) for entry in found])
    return SweepReport(
        folder=folder,
        states=states,
        best_trial=best.number,
        best_value=study.best_value,
        best_settings=settings,
        recipe=target,
        correlations=tuple(found),
        pictures=tuple(_pictures(study, found, folder)),
    )


def best_recipe(recipe: Sequence[Run], run: Run, settings: Mapping[str, Scalar], title: Sequence[str]) -> bytes:
    """A recipe file of a run with other settings, called `NAME-best`, after the runs that it starts from.

    Args:
        recipe: the runs among which the ancestors are.
        run: the one that is varied.
        settings: key -> value.
        title: lines of the comment on top.
    """
    chain = [dataclasses.replace(varied(run, settings), name=f"{run.artefact}-best")]
    while chain[0].start:
        chain.insert(0, next(entry for entry in recipe if entry.artefact == chain[0].start))
    return recipe_text([_from_anywhere(entry) for entry in chain], title)


def correlations(study: optuna.Study, keys: Sequence[str]) -> list[Correlation]:
    """Importance and signed rank correlation of each key, over the completed trials."""
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    various = [key for key in keys if len({trial.params[key] for trial in trials}) > 1]
    shares: Mapping[str, float] = {}
    if various and len({trial.value for trial in trials}) > 1:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=various)
    return [_correlation(key, shares.get(key), trials) for key in keys]


def _correlation(key: str, importance: float | None, trials: Sequence[FrozenTrial]) -> Correlation:
    values = [plain(trial.params[key]) for trial in trials]
    spearman = p = None
    # With an importance, neither the values nor their worths are all the same.
    if importance is not None and len(trials) > 2 and all(isinstance(value, bool | int | float) for value in values):
        found = spearmanr([float(value) for value in values], [trial.value for trial in trials])
        spearman, p = float(found.statistic), float(found.pvalue)
    return Correlation(key=key, importance=importance, spearman=spearman, n=len(trials), p=p)


def _from_anywhere(run: Run) -> Run:
    """The run with whole paths of its files and folders: relative ones mean something else in another directory."""
    return dataclasses.replace(
        run,
        data=_whole(run.data),
        test_on=_whole(run.test_on),
        weights=absolute_weights(run.weights),
    )


def _whole(data: str) -> str:
    return str(Path(data).resolve()) if data and data not in DATASETS and Path(data).is_dir() else data


def _row(trial: FrozenTrial, keys: Sequence[str]) -> dict[str, Any]:
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "validation_top1": trial.value if trial.state == TrialState.COMPLETE else None,
        "epochs": max(trial.intermediate_values, default=0),
        "seconds": round(trial.duration.total_seconds(), 1) if trial.duration else None,
        **{key: trial.params.get(key) for key in keys},
    }


def _pictures(study: optuna.Study, found: Sequence[Correlation], folder: Path) -> list[Path]:
    """History, parallel coordinates and importance, as far as there are trials enough for them."""
    import matplotlib

    matplotlib.use("Agg")
    import optuna.visualization.matplotlib as drawing
    from matplotlib import pyplot

    wanted: list[tuple[str, Any, dict[str, Any]]] = [("history.png", drawing.plot_optimization_history, {})]
    # An axis of one value has no length.
    if keys := [entry.key for entry in found if entry.importance is not None]:
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        wanted += [
            ("parallel.png", drawing.plot_parallel_coordinate, {"params": keys}),
            ("importance.png", drawing.plot_param_importances, {"params": keys, "evaluator": evaluator}),
        ]
    for name, draw, options in wanted:
        with pyplot.rc_context():
            figure = draw(study, target_name="validation top-1", **options).figure
            _make_readable(figure, [entry.key for entry in found])
            figure.set_size_inches(max(9.0, 2.0 * len(found) + 2) if name == "parallel.png" else 9.0, 5.0)
            save_figure(figure, folder / name)
            pyplot.close(figure)
    return [folder / name for name, _, _ in wanted]


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
