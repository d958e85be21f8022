"""One page about a training: curves, learning rates, examples of what the network saw, and what it confuses.

`B` is the batch size, `C`, `H`, `W` colours, height and width of the input, `K` the number of labels.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from zoo.artefact.card import Card, Input
from zoo.base.commandline import short
from zoo.base.documents import DocumentError, to_dataclass
from zoo.base.errors import ArtefactError
from zoo.base.figures import save_figure
from zoo.base.files import CHECKPOINT
from zoo.base.progress import note
from zoo.base.seeds import generator_for
from zoo.data.augment.mix import mixes
from zoo.data.dataset import Dataset
from zoo.data.decoded import DecodedImages, Normalise, canvas, epoch_order
from zoo.explain.predictions.confusion import confusion_counts, draw_confusion, figure_size
from zoo.networks.checkpoint import load
from zoo.training.evaluate import accuracy, check_labels, torch_logits
from zoo.training.loop.distributed import World
from zoo.training.loop.feeds import TrainingImages, WholeFeed
from zoo.training.loop.fit import FitConfig
from zoo.training.loop.optim import make_schedule
from zoo.training.loop.state import LOG, read_log
from zoo.training.stage import Trained

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

__all__ = ["PAGE", "draw_page", "first_batch", "from_disk", "try_page"]

PAGE = "training.png"

_BLUE, _ORANGE, _GREY = "#0072b2", "#e69f00", "#777777"
"""Of Okabe and Ito's palette, which colour-blind people tell apart."""
_COLUMNS = 5
_EXAMPLES_WIDTH = 7.5
_CURVES_HEIGHT = 3.2
_LEAST_HEIGHT = 5.0
"""Of the lower half, in inches."""
_TITLE = 20
"""Characters above an example."""
_SCHEDULE_POINTS = 400


def try_page(trained: Trained) -> None:
    """Draw the page of a training that has ended; whatever goes wrong is said, and fails nothing."""
    path = trained.folder / PAGE
    try:
        draw_page(path, trained)
        note(f"{short(path.resolve())}: curves, examples of what it saw, confusion")
    except Exception as error:  # the checkpoint is there and good, whatever a drawing makes of its log
        note(f"{path} was not drawn: {type(error).__name__}: {error}")


def draw_page(path: Path, trained: Trained) -> None:
    """Draw the page of a training and write it as PNG.

    Raises:
        ArtefactError: log.csv cannot be read, or the page not be written.
    """
    from matplotlib.figure import Figure

    rows = read_log(trained.folder / LOG)
    labels = trained.card.use.labels
    truth = np.array([sample.label for sample in trained.dataset.splits["validation"]], dtype=np.int64)
    counts = confusion_counts(truth, trained.answers.argmax(axis=1).astype(np.int64), len(labels))
    width, height = figure_size(counts)
    height = max(height, _LEAST_HEIGHT)
    figure = Figure(figsize=(_EXAMPLES_WIDTH + width, _CURVES_HEIGHT + height + 0.5), layout="constrained")
    figure.suptitle(_heading(trained, rows, truth), fontsize=11)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(_CURVES_HEIGHT, height))[:, 0]
    _draw_curves(above, rows, trained.config, best=_best_epoch(trained.card))
    left, right = below.subfigures(1, 2, squeeze=False, width_ratios=(_EXAMPLES_WIDTH, width))[0]
    _draw_examples(left, trained, lines=max(2, round(height / (_EXAMPLES_WIDTH / _COLUMNS + 0.25))))
    right.suptitle("answers to the validation images", fontsize=10)
    draw_confusion(right.subplots(), counts, labels)
    save_figure(figure, path)


def from_disk(artefact: Path, dataset: Dataset) -> Trained:
    """What is needed to draw the page of an artefact's last training, computed anew.

    Args:
        artefact: the folder that was trained in.
        dataset: that it was trained on.

    Raises:
        ArtefactError: the checkpoint was not trained by this project, or by a version with other settings.
    """
    path = artefact / CHECKPOINT
    model, card = load(path)
    fits = [entry.config["fit"] for entry in card.lineage if "fit" in entry.config]
    if not fits:
        raise ArtefactError(f"{path} records no training, so there is none to draw; `pocketzoo train` does")
    try:
        config = to_dataclass(FitConfig, fits[-1], f"{path}: the training's settings")
    except DocumentError as error:
        raise ArtefactError(f"{error}; another version of pocketzoo trained it, so train again") from error
    check_labels(card, dataset)
    spec = card.use.input
    return Trained(
        folder=artefact,
        card=card,
        config=config,
        train=DecodedImages(dataset.splits["train"], canvas(spec)),
        dataset=dataset,
        answers=torch_logits(model, DecodedImages(dataset.splits["validation"], spec)),
    )


def first_batch(trained: Trained) -> tuple[torch.Tensor, torch.Tensor]:
    """The first batch of a training, drawn as its own seed and augmentation did.

    Returns:
        Inputs float32 [B, C, H, W] as the network gets them, and targets, int64 [B] or float32 [B, K].
    """
    config, train = trained.config, trained.train
    cpu = torch.device("cpu")
    classes, spec = len(trained.card.use.labels), trained.card.use.input
    # Without the validation images, which this feed is not asked about.
    pictures = TrainingImages(
        *(train, train, spec, config.augment, classes, config.seed, World(0, 1, cpu), torch.contiguous_format)
    )
    order = epoch_order(train.labels, sampler=config.sampler, generator=generator_for(config.seed, 0, "order"))
    feed = WholeFeed(nn.Identity(), nn.Identity(), pictures)
    return next(feed.batches(0, [order[: config.batch_size]], 0))


def _best_epoch(card: Card) -> int:
    """Counted from 1; 0: none."""
    summaries = [entry.summary for entry in card.lineage if "best_epoch" in entry.summary]
    return int(summaries[-1]["best_epoch"]) if summaries else 0


def _heading(trained: Trained, rows: Sequence[Mapping[str, float]], truth: npt.NDArray[np.int64]) -> str:
    found = accuracy(trained.answers, truth, dataset="", split="")
    seconds = sum(row["seconds"] for row in rows)
    epochs = int(rows[-1]["epoch"])
    counted = f"{epochs} epoch{'s' if epochs != 1 else ''} in {_duration(seconds)}"
    return (
        f"{trained.card.name} on {trained.dataset.name}: validation top-1 {found.top1:.2%} (95% interval "
        f"{found.low:.2%} to {found.high:.2%}), n = {found.n:,}; {len(trained.train):,} training images, {counted}"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _draw_curves(figure: SubFigure, rows: Sequence[Mapping[str, float]], config: FitConfig, *, best: int) -> None:
    loss, top1, rate = figure.subplots(1, 3)
    epochs = [row["epoch"] for row in rows]
    # A single epoch has no line; of many the points would hide it.
    style: dict[str, Any] = {"marker": "o", "markersize": 4 if len(rows) <= 30 else 0}
    loss.plot(epochs, [row["loss"] for row in rows], color=_ORANGE, label="training", **style)
    loss.plot(epochs, [row["validation_loss"] for row in rows], color=_BLUE, label="validation", **style)
    loss.set_title("loss", fontsize=10)
    loss.set_ylim(0, 1.1 * loss.get_ylim()[1])
    loss.legend(fontsize=8)
    top1.plot(epochs, [row["validation_top1"] * 100 for row in rows], color=_BLUE, **style)
    top1.set_title("validation top-1, %", fontsize=10)
    top1.set_ylim(0, 103)
    _draw_rates(rate, rows, config, style)
    for axes in (loss, top1, rate):
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_xlim(0, epochs[-1] * 1.03)
        axes.tick_params(labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    kept = [row["validation_top1"] * 100 for row in rows if row["epoch"] == best]
    if kept:
        for axes in (loss, top1):
            axes.axvline(best, color=_GREY, linestyle=":", linewidth=1)
        top1.plot([best], kept, marker="o", markersize=8, fillstyle="none", color=_GREY, linestyle="none")
        top1.set_title(f"validation top-1, %; kept: {kept[0]:.1f} of epoch {best}", fontsize=10)


def _draw_rates(axes: Axes, rows: Sequence[Mapping[str, float]], config: FitConfig, style: Mapping[str, Any]) -> None:
    last = rows[-1]["epoch"]
    if config.schedule == "plateau":
        # What it depends on stands in the log alone.
        places, rates = np.array([row["epoch"] for row in rows]), np.array([row["lr"] for row in rows])
    else:
        schedule = make_schedule(config.schedule, warmup=config.warmup)
        places = np.linspace(0, last, _SCHEDULE_POINTS)
        rates = np.array([config.lr * schedule(place / config.epochs) for place in places])
    shown = {**style, "markersize": style["markersize"] if config.schedule == "plateau" else 0}
    factors = _factors(config)
    for (name, factor), colour in zip(factors.items(), (_BLUE, _ORANGE), strict=False):
        axes.plot(places, rates * factor, color=colour, label=name, **shown)
    axes.set_title("learning rate", fontsize=10)
    if len(factors) > 1:
        axes.set_yscale("log")
        axes.set_ylim(bottom=max(config.lr * min(factors.values()) * 1e-3, 1e-12))
        axes.legend(fontsize=8)
    else:
        axes.set_ylim(bottom=0)


def _factors(config: FitConfig) -> dict[str, float]:
    """The rates that are drawn, in words, with their factors."""
    if config.rates:
        return {"classifier": config.rates[0], "first stage": config.rates[-1]}
    if config.layer_decay != 1:
        return {
            "classifier": config.head_factor,
            f"stage before it (× {config.layer_decay:g} each)": config.layer_decay,
        }
    if config.head_factor != 1:
        return {"classifier": config.head_factor, "the rest": 1.0}
    return {"all": 1.0}


def _draw_examples(figure: SubFigure, trained: Trained, *, lines: int) -> None:
    inputs, targets = first_batch(trained)
    shown = inputs[: lines * _COLUMNS]
    # Rows that would stay empty leave their room to the others.
    lines = math.ceil(len(shown) / _COLUMNS)
    grid = figure.subplots(lines, _COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, target in zip(grid.flat, _visible(shown, trained.card.use.input), targets, strict=False):
        smooth = "nearest" if max(image.shape[:2]) < 64 else "antialiased"
        axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation=smooth)
        axes.set_title(_target(target, trained.card.use.labels), fontsize=8, pad=2)
    config = trained.config
    # Of images whose frozen part was kept the variations were drawn once, and not batch by batch.
    kept = config.views and not config.augment.plain and not mixes(config.augment)
    what = "training images, varied as in this run" if kept else "training images as they went in, of the first batch"
    figure.suptitle(f"{what}: {len(shown)}", fontsize=10)


def _visible(inputs: torch.Tensor, spec: Input) -> npt.NDArray[np.float32]:
    """Inputs [B, C, H, W] as they look, between 0 and 1: [B, H, W, 3], or [B, H, W] of one channel."""
    forward = Normalise(spec, torch.device("cpu"))
    black, white = (forward(torch.full((1, spec.channels, 1, 1), value)) for value in (0.0, 255.0))
    found: npt.NDArray[np.float32] = ((inputs - black) / (white - black)).clamp(0, 1).movedim(1, -1).numpy()
    return found[..., 0] if spec.channels == 1 else found


def _target(target: torch.Tensor, labels: Sequence[str]) -> str:
    """A label, or of a mixed image the two with the largest shares."""
    if target.ndim == 0:
        return _short(labels[int(target)], _TITLE)
    shares, places = target.topk(min(2, len(labels)))
    parts = [(float(share), int(place)) for share, place in zip(shares, places, strict=True) if share > 0.005]
    if len(parts) == 1:
        return _short(labels[parts[0][1]], _TITLE)
    return "\n".join(f"{share:.0%} {_short(labels[place], _TITLE - 4)}" for share, place in parts)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else textwrap.shorten(text, width, placeholder="…") or f"{text[: width - 1]}…"
