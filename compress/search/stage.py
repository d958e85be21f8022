"""Search for a smaller artefact: ratio x importance x precision x input size x recovery, within a time, on validation.

In compress.search, `candidates` says what is wanted and found, `trials` remembers it and proposes what to try next,
`workbench` makes and measures, `final` brings the choice to its place and reads the test split once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import distribution_to_json

from compress.prune.importance import check_importance
from compress.search.candidates import Candidate, Goal, Measured, Results
from compress.search.figure import draw
from compress.search.final import FinalTest, bring, compare
from compress.search.trials import EPOCHS, SPACE, Plan, Trials
from compress.search.workbench import Settings, Workbench
from zoo.artefact.card import Card, allow
from zoo.artefact.engines.choice import VARIABLE
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError, CheckError, TrainingError, UsageError
from zoo.base.files import CHECKPOINT, GRAPH, INT8_GRAPH, sha256_file
from zoo.base.machine import processor
from zoo.base.progress import note
from zoo.data.dataset import Dataset
from zoo.networks.checkpoint import read_card
from zoo.networks.stages import Freezing
from zoo.training.evaluate import check_labels
from zoo.training.loop.config import FitConfig

__all__ = ["PICTURE", "STUDY", "FinalTest", "Found", "OptimizeConfig", "fit_of", "optimize"]

STUDY = "search.db"
PICTURE = "pareto.png"
_SEARCH = "search"
_RECOVERY_SHARE = 0.2
"""Of the whole time for one recovery, so that several networks get one."""


@dataclass(frozen=True, kw_only=True)
class OptimizeConfig:
    """What is wanted, and how long to look for it."""

    goal: Goal = dataclasses.field(default_factory=Goal)
    minutes: float = 10.0
    """Of the whole search, over all sessions."""
    importances: tuple[str, ...] = ("taylor", "l2", "fpgm")
    """Names in compress.prune.importance; the first is tried first."""
    recover: bool = True
    """Train pruned networks."""
    resize: bool = True
    """Try smaller inputs."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.minutes < math.inf:
            raise UsageError(f"--minutes must be a positive number, got {self.minutes:g}")
        if not self.importances:
            raise UsageError("--importances needs at least one name, like l2,fpgm")
        for name in self.importances:
            check_importance(name)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found."""

    results: Results
    given_up: tuple[tuple[Candidate, float], ...]
    """Networks that were not recovered, since others that compute no more are better already; their accuracy."""
    failed: tuple[tuple[Candidate, str], ...]
    """What could not be made, and why."""
    chosen: Measured | None
    """None if nothing meets the goal; nothing was written then."""
    path: Path | None
    """The chosen file; None where nothing was written, which includes that the artefact itself is the best."""
    test: FinalTest | None
    seconds: float
    """Of the search, over all sessions."""
    study: Path
    picture: Path
    earlier: tuple[str, ...] = ()
    """Where nothing was written: names of the files in the folder that an earlier search has chosen."""

    def advice(self, goal: Goal) -> str:
        """What to relax where nothing meets the goal."""
        wanted = self.results.remedy(goal)
        return f"nothing found meets the goal; the nearest would with {wanted}, or search longer with --minutes"


def optimize(
    source: Path,
    out: Path,
    config: OptimizeConfig,
    *,
    dataset: Dataset,
    workbench: Callable[..., Workbench] = Workbench,
) -> Found:
    """Search, choose, write the chosen artefact, and read the test split once.

    Args:
        source: checkpoint of the artefact.
        out: folder of the new one; gets model.safetensors, model.onnx, model.int8.onnx (where it is chosen), search.db
            and pareto.png.
        config: what is wanted, and how long to look for it.
        dataset: the artefact's.
        workbench: makes and measures candidates.

    Raises:
        UsageError: `out` is the artefact itself or another one.
        ArtefactError: the artefact is at the wrong stage, cannot be exported, or another process searches in `out`.
        DataError: other labels than the artefact's.
        KeyboardInterrupt: the same call continues.
    """
    card = read_card(source)
    allow(card, "prune")
    check_labels(card, dataset)
    _check_out(source, out)
    _warn_of_few(len(dataset.splits["validation"]), config.goal.max_drop)
    fit, most_epochs = fit_of(card)
    settings = Settings(fit=fit, seed=config.seed)
    identity = _identity(source, dataset, settings)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        trials = Trials(out / STUDY, identity)
        place = out / _SEARCH / identity
        for other in (out / _SEARCH).iterdir() if (out / _SEARCH).is_dir() else ():
            if other != place:
                shutil.rmtree(other)
        bench = workbench(source, place, settings, dataset, name=out.name)
        signs = [path.stat().st_mtime for path in (out / STUDY, *place.rglob("*"))]
        trials.bury(max(signs))
        try:
            _search(trials, bench, config, most_epochs)
        except KeyboardInterrupt:
            _say(trials, config, out / PICTURE, card.name)
            raise
        return _finish(trials, bench, config, out)


def fit_of(card: Card) -> tuple[FitConfig, int]:
    """Settings of recovery, and the most epochs that are sensible.

    They are those of the artefact's last training as far as they suit a whole network that is already trained: a short
    one-cycle over all layers at one rate. The rate of adapters, masks or a frozen network says nothing about that.
    """
    known = next((entry for entry in reversed(card.lineage) if "fit" in entry.config and entry.stage == "train"), None)
    if known is None:
        return FitConfig(), FitConfig().epochs
    try:
        fit = to_dataclass(FitConfig, known.config["fit"], "fit")
    except (DocumentError, UsageError) as error:
        note(f"{card.name}: its training's settings cannot be read ({error}); recovery has the default ones")
        return FitConfig(), FitConfig().epochs
    partly = known.config.get("lora") or known.config.get("mask") or fit.freeze != Freezing()
    whole = dataclasses.replace(
        fit,
        lr=FitConfig().lr if partly else fit.lr,
        optimizer=FitConfig().optimizer if partly else fit.optimizer,
        schedule="one-cycle",
        freeze=Freezing(),
        head_factor=1.0,
        layer_decay=1.0,
        rates=(),
        l2sp=0.0,
        ema=0.0,
        views=0,
    )
    return whole, fit.epochs


def _warn_of_few(n: int, max_drop: float) -> None:
    if 0 < max_drop * n < 100:
        note(
            f"warning: {max_drop:g} points of {n} validation images are less than one image, so no image may be lost; "
            f"from {math.ceil(100 / max_drop - 1e-9)} images on, one may"
        )


def _check_out(source: Path, out: Path) -> None:
    if (out / CHECKPOINT).resolve() == source.resolve():
        raise UsageError(f"--out {out} is the artefact itself; name another folder")
    if (out / CHECKPOINT).exists() and not (out / STUDY).exists():
        raise UsageError(
            f"--out {out} holds an artefact that no search made (there is no {STUDY}); name another folder, or remove "
            "that one"
        )


def _identity(source: Path, dataset: Dataset, settings: Settings) -> str:
    """Of what decides about every number: with another of these, the trials would be others."""
    space = {name: distribution_to_json(values) for name, values in SPACE.items()}
    parts = [sha256_file(source), dataset.digest, dataclasses.asdict(settings), space]
    content = json.dumps([*parts, processor(), os.environ.get(VARIABLE, "")], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    lock = FileLock(out / f".{_SEARCH}.lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise ArtefactError(f"another process is optimizing into {out}; wait for it, or name another --out") from None


def _plan(bench: Workbench, config: OptimizeConfig, epochs: Sequence[int]) -> Plan:
    return Plan(
        goal=config.goal,
        importances=() if bench.refusal else config.importances,
        precisions=bench.precisions,
        sizes=bench.sizes if config.resize else {1.0: bench.sizes[1.0]},
        epochs=epochs,
        seed=config.seed,
    )


def _search(trials: Trials, bench: Workbench, config: OptimizeConfig, most_epochs: int) -> None:
    """One trial after the other until nothing is left to try, or no time."""
    if bench.refusal:
        note(f"not pruned: {bench.refusal}")
    if "epoch_seconds" not in trials.facts:
        trials.study.set_user_attr("epoch_seconds", bench.epoch_seconds())
    epoch_seconds, seconds = trials.facts["epoch_seconds"], 60 * config.minutes
    affordable = min(most_epochs, _RECOVERY_SHARE * seconds / max(epoch_seconds, 1e-9))
    plan = _plan(bench, config, [n for n in EPOCHS if n <= max(1, affordable)] if config.recover else [0])

    def fits(candidate: Candidate) -> bool:
        epochs = 0 if (bench.place(candidate) / CHECKPOINT).is_file() else candidate.epochs
        # The end takes about as long as another candidate: timing side by side, and the test.
        needed = trials.estimate(epochs, epoch_seconds) + trials.estimate(0, epoch_seconds)
        return trials.seconds + needed <= seconds

    while (params := trials.propose(plan, fits)) is not None:
        trial = trials.begin(params)
        if (candidate := plan.candidate(trial.params)) is not None:
            _run(trials, trial, candidate, bench)
            _tell(trials.results, candidate, config.goal, trials.seconds)
        else:
            trials.end(trials.all[trial.number])


def _run(trials: Trials, trial: optuna.Trial, candidate: Candidate, bench: Workbench) -> None:
    """Carry out a trial, and delete the files of candidates that are beaten by now."""
    known = trials.results.entries
    begin = time.perf_counter()
    trial.set_user_attr("candidate", dataclasses.asdict(candidate))
    trial.set_user_attr("number", trial.number)
    try:
        if not candidate.importance or _worth_recovery(trials, trial, candidate, bench):
            measured = bench.measure(candidate, known[0].engine if known else None)
            trial.set_user_attr("measured", dataclasses.asdict(measured))
    except (ArtefactError, CheckError, TrainingError, UsageError) as error:
        if not known:
            raise
        note(f"{candidate.name}: {error}")
        trial.set_user_attr("reason", str(error))
    finally:
        trial.set_user_attr("seconds", round(time.perf_counter() - begin, 3))
    trials.end(trials.all[trial.number])
    # What is beaten now stays beaten, whatever the goal: its files are not wanted any more.
    bench.clean([entry.candidate for entry in trials.results.front()])


def _worth_recovery(trials: Trials, trial: optuna.Trial, candidate: Candidate, bench: Workbench) -> bool:
    """Whether no network that computes no more is surely more accurate already (EagleEye, Li et al. 2020)."""
    macs, metrics = bench.screen(candidate)
    given_up = any(other["macs"] <= macs and other["low"] > metrics.high for _, other in trials.of("screened"))
    trial.set_user_attr("screened", {"macs": macs, "low": metrics.low})
    if given_up:
        trial.set_user_attr("given_up", metrics.top1)
    note(f"{candidate.pruned}: {metrics.top1:.2%} before recovery" + ("; given up" if given_up else ""))
    return not given_up


def _tell(results: Results, candidate: Candidate, goal: Goal, seconds: float) -> None:
    for entry in (entry for entry in results.entries if entry.candidate == candidate):
        best = " (best so far)" if entry == results.choose(goal) else ""
        note(
            f"{entry.name}: validation {entry.metrics.top1:.2%}, {entry.speed.value:.2f} times as fast "
            f"({entry.engine}), {entry.megabytes:.2f} MB{best}; {seconds / 60:.1f} minutes so far"
        )


def _say(trials: Trials, config: OptimizeConfig, picture: Path, title: str) -> None:
    """What an interrupted search knows so far."""
    results = trials.results
    if not results.entries:
        return
    best = results.choose(config.goal)
    draw(results, config.goal, best, picture, title=title)
    if best is not None:
        used = max(0.01, math.floor(trials.seconds / 0.6) / 100)
        note(f"best so far: {best.name}; to be content with it, run the same command with --minutes {used:g}")


def _finish(trials: Trials, bench: Workbench, config: OptimizeConfig, out: Path) -> Found:
    results = trials.results
    chosen = results.choose(config.goal)
    path = test = None
    if chosen is not None and chosen != results.parent:
        bring(bench, chosen, out)
        path = out / chosen.candidate.file
        test = compare(trials, bench, chosen, path)
    draw(results, config.goal, chosen, out / PICTURE, title=bench.source.parent.name)
    return Found(
        results=results,
        given_up=tuple(trials.of("given_up")),
        failed=tuple(trials.of("reason")),
        chosen=chosen,
        path=path,
        test=test,
        seconds=trials.seconds,
        study=out / STUDY,
        picture=out / PICTURE,
        earlier=() if path else tuple(name for name in (CHECKPOINT, GRAPH, INT8_GRAPH) if (out / name).is_file()),
    )
