"""Search for a smaller artefact: pruning ratio x importance x quantization, within a time, on validation data.

In compress.search, `strategy` decides what is tried next, `budget` what there is time for, `pareto` what is chosen;
`workbench` makes and measures the candidates. Everything found stands in candidates.jsonl, so that the same call goes
on after an interruption. The test split is read once, after the choice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from compress.prune.importance import check_importance
from compress.search.evaluation import GRAPHS, Settings, Workbench, carry_out
from compress.search.final_test import FinalTest, bring, compare, is_parent
from compress.search.journal import Candidate, Journal, Record, Task, candidates, parent_of
from compress.search.next_task import Plan, last_task
from compress.search.pareto_front import Goal, choose, draw, front, nearest, remedy
from compress.search.time_budget import Budget, epochs_for, next_task
from zoo.artefact.card import Card, allow
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import CHECKPOINT, sha256_file
from zoo.base.progress import note
from zoo.data.dataset import Dataset
from zoo.networks.checkpoint import read_card
from zoo.networks.stages import Freezing
from zoo.training.evaluate import check_labels
from zoo.training.loop.config import FitConfig

__all__ = ["CANDIDATES", "PICTURE", "FinalTest", "Found", "OptimizeConfig", "fit_of", "images_needed", "optimize"]

CANDIDATES = "candidates.jsonl"
PICTURE = "pareto.png"
_SEARCH = "search"


@dataclass(frozen=True, kw_only=True)
class OptimizeConfig:
    """What is wanted, and how long to look for it."""

    goal: Goal = dataclasses.field(default_factory=Goal)
    minutes: float = 10.0
    """Of the whole search, over all sessions."""
    importances: tuple[str, ...] = ("taylor", "l2", "fpgm")
    """Names in compress.prune.importance."""
    recover: bool = True
    """Train pruned networks."""
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

    candidates: tuple[Candidate, ...]
    """The artefact itself is the first."""
    rankings: tuple[Record, ...]
    """Networks after pruning and recalibration, before recovery."""
    front: tuple[Candidate, ...]
    chosen: Candidate | None
    """None if nothing meets the goal; nothing was written then."""
    nearest: tuple[Candidate, ...]
    """Where nothing meets the goal: what misses it least."""
    path: Path | None
    """The chosen file; None where nothing was written, which includes that the artefact itself is the best."""
    test: FinalTest | None
    seconds: float
    """Of the search, over all sessions."""
    journal: Path
    picture: Path
    earlier: tuple[str, ...] = ()
    """Where nothing was written: names of the files in the folder that an earlier search has chosen."""

    @property
    def parent(self) -> Candidate:
        """The artefact's own FP32 file."""
        return parent_of(self.candidates)

    def advice(self, goal: Goal) -> str:
        """What to relax where nothing meets the goal."""
        wanted = remedy(self.nearest[0], self.parent, goal)
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
        out: folder of the new one; gets model.safetensors, model.onnx, model.int8.onnx (where it is
            chosen, or meets the goal and is faster than FP32), candidates.jsonl and pareto.png.
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
    settings = Settings(max_drop=config.goal.max_drop, fit=fit, seed=config.seed)
    identity = _identity(source, dataset, settings)
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        journal = Journal(out / CANDIDATES, identity)
        bench = workbench(source, out / _SEARCH / identity, settings, dataset, name=out.name)
        _forget_others(out / _SEARCH, identity)
        _count_interrupted(journal, bench.folder)
        try:
            _search(journal, bench, config, dataset, most_epochs)
        except KeyboardInterrupt:
            _say_best(journal, config, out / PICTURE, card.name)
            raise
        return _finish(journal, bench, config, dataset, out)


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


def images_needed(points: float) -> int:
    """Validation images of which one is so many points."""
    return math.ceil(100 / points - 1e-9)


def _warn_of_few(n: int, max_drop: float) -> None:
    if 0 < max_drop * n < 100:
        note(
            f"warning: {max_drop:g} points of {n} validation images are less than one image, so no image may be lost; "
            f"from {images_needed(max_drop)} images on, one may"
        )


def _check_out(source: Path, out: Path) -> None:
    if (out / CHECKPOINT).resolve() == source.resolve():
        raise UsageError(f"--out {out} is the artefact itself; name another folder")
    if (out / CHECKPOINT).exists() and not (out / CANDIDATES).exists():
        raise UsageError(f"--out {out} holds an artefact that no search made; name another folder, or remove that one")


def _identity(source: Path, dataset: Dataset, settings: Settings) -> str:
    content = json.dumps([sha256_file(source), dataset.digest, dataclasses.asdict(settings)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    lock = FileLock(out / f".{_SEARCH}.lock")
    try:
        with lock.acquire(timeout=0):
            yield
    except Timeout:
        raise ArtefactError(f"another process is optimizing into {out}; wait for it, or name another --out") from None


def _forget_others(folder: Path, identity: str) -> None:
    """Delete the files of searches from another artefact, data or settings; their lines in the journal stay."""
    for place in folder.iterdir() if folder.is_dir() else ():
        if place.name != identity:
            shutil.rmtree(place)


def _count_interrupted(journal: Journal, folder: Path) -> None:
    """Count the time of a task that was killed: from its begin to the last sign of life among its files."""
    if journal.open is None:
        return
    begin = journal.open[1]
    signs = [path.stat().st_mtime for path in folder.rglob("*")] if folder.is_dir() else []
    journal.lose(max(0.0, max(signs, default=begin) - begin))


def _search(journal: Journal, bench: Workbench, config: OptimizeConfig, dataset: Dataset, most_epochs: int) -> None:
    """Do one task after the other until nothing is left to try, or no time."""
    limits = Budget(
        seconds=60 * config.minutes,
        used=0.0,
        **{f"{split}_images": len(dataset.splits[split]) for split in ("train", "validation", "test")},
    )
    while True:
        records = journal.records
        epochs = epochs_for(limits, records, most_epochs) if config.recover and records else 0
        plan = Plan(
            goal=config.goal,
            importances=config.importances,
            epochs=epochs,
            most_epochs=most_epochs if config.recover else 0,
        )
        task = next_task(records, plan, dataclasses.replace(limits, used=journal.seconds))
        if task is None:
            return
        carry_out(task, journal, bench)
        _tell(journal, task, config)


def _tell(journal: Journal, task: Task, config: OptimizeConfig) -> None:
    if task.kind != "measure":
        return
    found = candidates(journal.records)
    for entry in found:
        if entry.task == task:
            best = " (best so far)" if entry == choose(found, config.goal) else ""
            note(
                f"{entry.name}: validation {entry.top1:.2%}, {1 / entry.share:.2f} times as fast, "
                f"{entry.megabytes:.2f} MB{best}; {journal.seconds / 60:.1f} of {config.minutes:g} minutes"
            )


def _say_best(journal: Journal, config: OptimizeConfig, picture: Path, title: str) -> None:
    """What an interrupted search knows so far."""
    found = candidates(journal.records)
    if not found:
        return
    best = choose(found, config.goal)
    draw(found, config.goal, best, picture, title=title)
    if best is not None:
        used = math.floor(journal.seconds / 0.6) / 100
        note(
            f"best so far: {best.name}; to be content with it, run the same command with --minutes {max(used, 0.01):g}"
        )


def _finish(journal: Journal, bench: Workbench, config: OptimizeConfig, dataset: Dataset, out: Path) -> Found:
    for _ in range(3):
        task = last_task(journal.records, config.goal)
        if task is None:
            break
        carry_out(task, journal, bench)
    chosen = choose(candidates(journal.records), config.goal)
    path = test = None
    if chosen is not None and not is_parent(chosen):
        chosen = bring(journal, bench, config.goal, out)
    if chosen is not None and not is_parent(chosen):
        path = out / GRAPHS[chosen.precision]
        test = compare(journal, bench, chosen, path, dataset)
    found = candidates(journal.records)
    draw(found, config.goal, chosen, out / PICTURE, title=bench.source.parent.name)
    if chosen is not None:
        shutil.rmtree(out / _SEARCH, ignore_errors=True)
    stale = () if path else tuple(name for name in (CHECKPOINT, *GRAPHS.values()) if (out / name).is_file())
    return Found(
        candidates=tuple(found),
        rankings=tuple(record for record in journal.records if record.task.kind == "rank"),
        front=tuple(front(found)),
        chosen=chosen,
        nearest=() if chosen else tuple(nearest(found, config.goal)),
        path=path,
        test=test,
        seconds=journal.seconds,
        journal=journal.path,
        picture=out / PICTURE,
        earlier=stale,
    )
