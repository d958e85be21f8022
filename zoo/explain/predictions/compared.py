"""A compressed artefact against what it was made from: the images that it answers otherwise. `N` images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoo.base.errors import DataError
from zoo.base.statistics.paired import Paired, agreement, compare_answers
from zoo.explain.panels import NEUTRAL, RIGHT, WRONG, Panel, draw_panels
from zoo.explain.predictions.answers import RIGHT_MARK, WRONG_MARK, Answers, grid, percent, seen

__all__ = ["GROUPS", "Changes", "compare_changes", "draw_changes", "sentence", "shown"]

GROUPS = {
    "lost": "lost: right before, wrong after",
    "gained": "gained: wrong before, right after",
    "different": "wrong before and after, differently",
    "changed": "another answer; the truth is not known",
    "moved": "the same answer, probability moved most",
}
"""What the images of a group have in common."""

_COLUMNS = 6


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What two files answer to the same N images."""

    before: Answers
    after: Answers
    groups: dict[str, tuple[int, ...]]
    """Places by group (a key of GROUPS), the largest movement of probability first; `moved` has all that stayed."""
    movement: npt.NDArray[np.float64]
    """[N]: total variation distance of both files' calibrated probabilities, 0 to 1."""
    agreement: float
    """Share of the images that both answer with the same label."""
    paired: Paired | None
    """The difference of the accuracies; None where the labels are not known."""

    @property
    def changed(self) -> int:
        """Images with another answer."""
        return sum(len(places) for group, places in self.groups.items() if group != "moved")


def compare_changes(before: Answers, after: Answers) -> Changes:
    """Find the images that two files answer differently.

    Args:
        before: the parent's answers.
        after: the compressed file's, to the same images.

    Raises:
        DataError: the files have different labels.
    """
    if before.labels != after.labels:
        raise DataError(
            f"{after.name} knows the labels {list(after.labels)[:5]}, {before.name} knows {list(before.labels)[:5]}; "
            "only files with the same labels can be compared"
        )
    moved = before.best != after.best
    truth = after.truth
    if truth is None:
        members = {"changed": moved}
        paired = None
    else:
        first, second = before.best == truth, after.best == truth
        members = {"lost": first & ~second, "gained": ~first & second, "different": moved & ~first & ~second}
        paired = compare_answers(before.logits, after.logits, truth)
    members["moved"] = ~moved
    gaps = before.probabilities.astype(np.float64) - after.probabilities.astype(np.float64)
    movement = np.abs(gaps).sum(axis=1) / 2
    order = np.argsort(-movement, kind="stable")
    return Changes(
        before=before,
        after=after,
        groups={name: tuple(int(place) for place in order[mask[order]]) for name, mask in members.items()},
        movement=movement,
        agreement=agreement(before.logits, after.logits),
        paired=paired,
    )


def shown(changes: Changes, count: int) -> dict[str, tuple[int, ...]]:
    """Which places of each group to draw, at most `count` in all: fairly shared, groups without any left out.

    Where there is room, the images with unchanged answers follow whose probabilities moved most: a row, or two where
    no answer changed.
    """
    groups = {name: places for name, places in changes.groups.items() if places and name != "moved"}
    shares = dict.fromkeys(groups, 0)
    for _ in range(min(count, changes.changed)):
        hungry = [name for name in groups if shares[name] < len(groups[name])]
        shares[min(hungry, key=lambda name: shares[name])] += 1
    found = {name: groups[name][:share] for name, share in shares.items() if share}
    room = min(count - changes.changed, _COLUMNS if changes.changed else 2 * _COLUMNS)
    if room > 0 and changes.groups["moved"]:
        found["moved"] = changes.groups["moved"][:room]
    return found


def sentence(changes: Changes) -> str:
    """How many answers changed, and which way, with the number of images."""
    n = len(changes.after.samples)
    text = f"{changes.after.name} against {changes.before.name} on {n:,} images of {changes.after.source}: "
    if not changes.changed:
        text += f"all {n:,} answers are the same"
    else:
        differ = "1 answer differs" if changes.changed == 1 else f"{changes.changed:,} answers differ"
        text += f"{differ} (agreement {changes.agreement:.1%})"
    if (paired := changes.paired) and changes.changed:
        text += f": {paired.lost} lost, {paired.gained} gained, {len(changes.groups['different'])} wrong both times"
    if paired:
        text += f"; accuracy {paired.points:+.2f} points (95% interval {paired.low:+.2f} to {paired.high:+.2f})"
    return text


def draw_changes(path: Path, changes: Changes, *, count: int = 30) -> None:
    """Draw images with both answers, group by group, and write the page as PNG.

    Args:
        path: of the PNG file.
        changes: what to draw.
        count: images, at most.

    Raises:
        ArtefactError: the file cannot be written.
        ImageError: an image cannot be decoded.
    """
    rows: list[Sequence[Panel | None]] = []
    titles: list[str] = []
    for name, places in shown(changes, count).items():
        part = grid([_panel(changes, place) for place in places], _COLUMNS)
        rows += part
        total = len(changes.groups[name])
        some = f"{len(places)} of {total:,}" if len(places) < total else f"{total}"
        titles += [f"{GROUPS[name]}\n({some})"]
        titles += [""] * (len(part) - 1)
    draw_panels(path, rows, heading=sentence(changes), row_titles=titles)


def _panel(changes: Changes, place: int) -> Panel:
    before, after = changes.before, changes.after
    truth = None if after.truth is None else int(after.truth[place])
    lines = [f"{word}: {_told(answers, place, truth)}" for word, answers in (("before", before), ("after", after))]
    colour = NEUTRAL
    if truth is not None:
        right = int(after.best[place]) == truth
        colour = RIGHT if right else WRONG
        if not right and int(before.best[place]) != truth:
            lines.append(f"true: {after.labels[truth]}")
    return Panel(image=seen(after.samples[place], after.card), title="\n".join(lines), colour=colour, framed=True)


def _told(answers: Answers, place: int, truth: int | None) -> str:
    best = int(answers.best[place])
    mark = "" if truth is None else f"{RIGHT_MARK if best == truth else WRONG_MARK} "
    return f"{mark}{percent(answers.shares(place)[best])} {answers.labels[best]}"
