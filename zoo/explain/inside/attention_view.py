"""One image through the eyes of several vision transformers: a row for each, what it looks at in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from zoo.base.errors import ArtefactError, UsageError, unknown_name
from zoo.base.files import CHECKPOINT
from zoo.explain.checkpoint_of_graph import checkpoint_for
from zoo.explain.inside.attention_maps import attend, attention_layers, to_grid, tokens_of
from zoo.explain.inside.input_image import picture
from zoo.explain.inside.rollout import gradient_weighted, rollout
from zoo.explain.panels import Panel, draw_panels
from zoo.explain.predictions.answers import percent
from zoo.networks.checkpoint import load

__all__ = ["METHODS", "View", "draw_views", "view", "views"]

METHODS = ("all", "gradient", "heads", "rollout")

_HEADS_PER_ROW = 6

Map = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class View:
    """What one network looks at in one image; maps are float32 [rows, columns] of patches."""

    name: str
    image: npt.NDArray[np.uint8]
    """uint8 [H, W, 3], as the network sees it."""
    answer: str
    probability: float
    """Of that answer, after the card's temperature."""
    explained: str
    """The label whose gradient was taken."""
    asked: str | None
    """The label that was asked for, whether or not the network knows it."""
    read: str
    """Which tokens the classifier reads, whose attention the maps are."""
    heads: npt.NDArray[np.float32]
    """float32 [heads, rows, columns]: the attention of one block."""
    block: int
    """That block's place, from 0."""
    blocks: int
    rollout: Map
    fusion: str
    """How the heads were made one for the rollout."""
    gradient: Map

    @property
    def knows(self) -> bool:
        """Whether the network has the label that was asked for, if one was."""
        return self.asked is None or self.asked == self.explained


def views(
    artefacts: Sequence[Path],
    data: bytes,
    *,
    label: str | None = None,
    block: int | None = None,
    fusion: str = "mean",
) -> list[View]:
    """An image's file seen by each artefact.

    Args:
        artefacts: folders, checkpoints, or ONNX files beside their checkpoint.
        data: the bytes of the image's file; each artefact's own card says how it is preprocessed.
        label: whose evidence the gradient shows, where the artefact knows it; else, and for None, its own answer.
        block: whose heads are shown, from 0; None: the last.
        fusion: see :func:`zoo.explain.inside.rollout.rollout`.

    Raises:
        UsageError: no artefact knows the label, or there is no such block or fusion.
        ArtefactError: a checkpoint that cannot be opened, or a network without attention over the whole image.
        ImageError: the image cannot be read.
    """
    # A row is named after the checkpoint: the answer of a quantized file beside it may be another.
    paths = [checkpoint_for(artefact) for artefact in artefacts]
    opened = [(path, *load(path)) for path in paths]
    known = {name for _, _, card in opened for name in card.use.labels}
    if label is not None and label not in known:
        raise unknown_name("label", label, known)
    found = []
    for path, model, card in opened:
        pixels, image = picture(data, card)
        try:
            found.append(
                view(
                    model,
                    pixels,
                    image,
                    labels=card.use.labels,
                    name=_name(path),
                    temperature=card.use.temperature,
                    label=label,
                    block=block,
                    fusion=fusion,
                )
            )
        except ArtefactError as error:
            raise ArtefactError(f"{path}: {error}") from error
    return found


def view(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    image: npt.NDArray[np.uint8],
    *,
    labels: Sequence[str],
    name: str,
    temperature: float = 1.0,
    label: str | None = None,
    block: int | None = None,
    fusion: str = "mean",
) -> View:
    """What one network looks at.

    Args:
        model: a vision transformer; stays as it is.
        inputs: the preprocessed image, float [1, C, H, W].
        image: the same to look at, uint8 [H, W, 3].
        labels: of the network's outputs.
        name: of its row.
        temperature: that its logits are divided by.
        label: see :func:`views`.
        block: see :func:`views`.
        fusion: see :func:`zoo.explain.inside.rollout.rollout`.

    Raises:
        UsageError: there is no such block or fusion.
        ArtefactError: the network has no attention over the whole image.
    """
    blocks = len(attention_layers(model))
    chosen = blocks - 1 if block is None else block
    if not 0 <= chosen < blocks:
        raise UsageError(f"--block {block}: {name} has the blocks 0 to {blocks - 1}")
    with torch.no_grad():
        attended = attend(model, inputs)
    height, width = inputs.shape[-2:]
    tokens = tokens_of(model, attended.maps[0].shape[-1], (height, width))
    probabilities = (attended.logits[0].double() / temperature).softmax(dim=-1)
    answer = int(probabilities.argmax())
    explained = labels.index(label) if label in labels else answer
    return View(
        name=name,
        image=image,
        answer=labels[answer],
        probability=float(probabilities[answer]),
        explained=labels[explained],
        asked=label,
        read=tokens.read,
        heads=_array(to_grid(attended.maps[chosen][0], tokens)),
        block=chosen,
        blocks=blocks,
        rollout=_array(to_grid(rollout(attended.maps, fusion=fusion)[0], tokens)),
        fusion=fusion,
        gradient=_array(to_grid(gradient_weighted(model, inputs, explained)[0], tokens)),
    )


def draw_views(path: Path, found: Sequence[View], *, method: str, title: str) -> None:
    """Draw a row per network and write it as PNG; many heads take several rows.

    Args:
        path: of the PNG file.
        found: what each network looks at.
        method: one of METHODS; `all`: the mean of the heads, rollout and gradient.
        title: of the image.

    Raises:
        UsageError: an unknown method.
        ArtefactError: the file cannot be written.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    rows: list[list[Panel | None]] = []
    names: list[str] = []
    for one in found:
        several = _rows(one, method)
        rows += several
        names += [_row_title(one), *("" for _ in several[1:])]
    heading = f"{title}: dark patches count least, yellow ones most; each map is scaled to its own largest value"
    draw_panels(path, rows, heading=heading, row_titles=names)


def _rows(one: View, method: str) -> list[list[Panel | None]]:
    first = Panel(image=one.image, title=f"says {one.answer}\nat {percent(one.probability)}")
    last = one.block == one.blocks - 1
    mean = _panel(one, one.heads.mean(axis=0), f"mean of heads\n{'last block' if last else f'block {one.block}'}")
    fused = "" if one.fusion == "mean" else f", heads' {one.fusion}"
    rolled = _panel(one, one.rollout, f"attention rollout\n{one.blocks} blocks{fused}")
    own = ", its answer" if one.asked is None or not one.knows else ""
    weighted = _panel(one, one.gradient, f"gradient-weighted\nfor {one.explained}{own}")
    if method != "heads":
        maps = {"all": [mean, rolled, weighted], "rollout": [rolled], "gradient": [weighted]}[method]
        return [[first, *maps]]
    heads = [_panel(one, head, f"head {number}") for number, head in enumerate(one.heads)]
    groups = [heads[start : start + _HEADS_PER_ROW] for start in range(0, len(heads), _HEADS_PER_ROW)]
    return [[first, mean, *groups[0]], *([None, None, *group] for group in groups[1:])]


def _panel(one: View, found: Map, title: str) -> Panel:
    if float(np.ptp(found)) == 0:
        return Panel(image=one.image, title=f"{title}: the same everywhere", overlay=found)
    return Panel(image=one.image, title=title, overlay=found)


def _row_title(one: View) -> str:
    rows, columns = one.rollout.shape
    lines = [one.name, f"{rows} x {columns} patches", one.read]
    if not one.knows:
        lines.append(f"has no label {one.asked}")
    return "\n".join(lines)


def _name(checkpoint: Path) -> str:
    path = checkpoint.resolve()
    return path.parent.name if path.name == CHECKPOINT else f"{path.parent.name} {path.name}"


def _array(found: torch.Tensor) -> npt.NDArray[np.float32]:
    return found.detach().float().cpu().numpy()
