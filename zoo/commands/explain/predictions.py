"""Commands that show where an artefact errs, and where a compressed one answers otherwise than its parent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from zoo.base.commandline import Artefact, AsJson, console
from zoo.base.errors import ArtefactError, UsageError
from zoo.base.files import CHECKPOINT, graph_paths, output_root
from zoo.base.progress import note
from zoo.commands.explain.group import Out, explain, picture_path, say
from zoo.commands.image_set import Images, Split, pictures_of
from zoo.commands.runs import Data

if TYPE_CHECKING:
    from zoo.artefact.card import Card
    from zoo.explain.predictions.answers import Answers
    from zoo.explain.predictions.compared import Changes

__all__ = ["changes", "confusion", "losses", "pairs", "predictions"]

Count = Annotated[int, typer.Option(min=1, help="Images to draw, at most.")]
NoImages = Annotated[list[Path] | None, typer.Option("--images", hidden=True)]
"""Accepted, to say why it cannot help."""


@explain.command()
def predictions(
    artefact: Artefact,
    images: Images = None,
    data: Data = None,
    split: Split = "validation",
    count: Count = 30,
    seed: Annotated[int, typer.Option(help="Draws the images.")] = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """A grid of images with answers and probabilities, right and wrong told apart at a glance.

    Of a split the labels come in turn, the images at random. A folder's INT8 file answers where there is one, its
    checkpoint where there is no ONNX file.
    """
    from zoo.explain.predictions.answers import answer
    from zoo.explain.predictions.grid import draw_predictions, sample_places

    target = picture_path(artefact, out, "predictions")
    path, card = _open(artefact)
    pictures = pictures_of(path, card, images=images, data=data, split=split)
    n = len(pictures.samples)
    places = sample_places(pictures.truth(card.use.labels, where=str(path)), n, count=count, seed=seed)
    answers = answer(path, card, pictures, places.tolist())
    how = "labels in turn, " if answers.truth is not None else ""
    draw_predictions(target, answers, note=f"{how}drawn from {n:,} with seed {seed}" if len(places) < n else "")
    if as_json:
        rows = [_row(answers, place) for place in range(len(answers.samples))]
        _print_json(answers, target, pictures=rows)
        return
    right = answers.right
    print(
        f"{answers.name}: {len(answers.samples)} images" + (f", {int(right.sum())} right" if right is not None else "")
    )
    say(target)


@explain.command()
def confusion(
    artefact: Artefact,
    data: Data = None,
    split: Split = "validation",
    images: NoImages = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The confusion matrix of a split, with the accuracy and its interval.

    A folder's INT8 file answers where there is one. Of more than 30 labels those are drawn that are confused most;
    --json has all counts.
    """
    from zoo.explain.predictions.confusion import confusion_counts, write_confusion

    target = picture_path(artefact, out, "confusion")
    answers, truth = _labelled(artefact, images, data, split)
    counts = confusion_counts(truth, answers.best, len(answers.labels))
    text = _accuracy(answers, truth)
    write_confusion(target, counts, answers.labels, heading=f"{answers.name} on {answers.source}\n{text}")
    if as_json:
        _print_json(answers, target, labels=answers.labels, counts=counts.tolist())
        return
    print(f"{answers.name} on {answers.source}: {text}")
    say(target)


@explain.command()
def pairs(
    artefact: Artefact,
    data: Data = None,
    split: Split = "validation",
    images: NoImages = None,
    count: Annotated[int, typer.Option(min=1, help="Pairs of labels, at most; six images of each are drawn.")] = 5,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The most confused pairs of labels, with images of each.

    A folder's INT8 file answers where there is one.
    """
    from zoo.explain.predictions.confused_pairs import draw_pairs
    from zoo.explain.predictions.confusion import confusion_counts, most_confused

    target = picture_path(artefact, out, "pairs")
    answers, truth = _labelled(artefact, images, data, split)
    found = most_confused(confusion_counts(truth, answers.best, len(answers.labels)), answers.labels, count)
    if found:
        draw_pairs(target, answers, found)
    if as_json:
        rows = [
            {"true": pair.true, "answered": pair.answered, "count": pair.count, "n": pair.n, "share": pair.share}
            for pair in found
        ]
        _print_json(answers, target if found else None, pairs=rows)
    elif not found:
        print(f"{answers.name} on {answers.source}: all {len(truth):,} answers are right, nothing to draw")
    else:
        table = _table("true", "answered", right=("pictures", "of", "share"))
        for pair in found:
            table.add_row(pair.true, pair.answered, f"{pair.count:,}", f"{pair.n:,}", f"{pair.share:.1%}")
        console().print(table)
        say(target)


@explain.command()
def losses(
    artefact: Artefact,
    data: Data = None,
    split: Split = "validation",
    images: NoImages = None,
    count: Count = 30,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The images with the highest loss: -ln of the true label's calibrated probability.

    A folder's INT8 file answers where there is one.
    """
    from zoo.explain.predictions.answers import percent
    from zoo.explain.predictions.top_losses import draw_losses, top_losses

    target = picture_path(artefact, out, "losses")
    answers, truth = _labelled(artefact, images, data, split)
    found = top_losses(answers.logits, truth, answers.card.use.temperature, count)
    draw_losses(target, answers, found)
    rows = [{"loss": entry.loss, **_row(answers, entry.place)} for entry in found]
    if as_json:
        _print_json(answers, target, losses=rows)
        return
    table = _table("#", "file", "true", "answered", right=("loss", "of the true label", "of the answer"))
    for number, row in enumerate(rows, start=1):
        shares = (percent(row[key]) for key in ("probability_of_true", "probability"))
        table.add_row(str(number), row["file"], row["true"], row["answer"], f"{row['loss']:.2f}", *shares)
    console().print(table)
    say(target)


@explain.command()
def changes(
    artefact: Artefact,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            help="Folder or file to compare with. Default, by its lineage: the network before any pruning, else the "
            "graph that was quantized.",
            show_default=False,
        ),
    ] = None,
    images: Images = None,
    data: Data = None,
    split: Split = "validation",
    count: Count = 30,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """The images that a compressed file answers otherwise than its original: lost, gained, or wrong both times.

    A folder's INT8 file is compared with the network before any pruning, in FP32; name another file with --against to
    see what one step did. Where no answer changed, the images are drawn whose probabilities moved most.
    """
    from zoo.explain.predictions.answers import answer
    from zoo.explain.predictions.compared import compare_changes, draw_changes, sentence

    target = picture_path(artefact, out, "changes")
    path, card = _open(artefact)
    parent = _original(path, card, against)
    pictures = pictures_of(path, card, images=images, data=data, split=split)
    found = compare_changes(answer(parent, _card(parent), pictures), answer(path, card, pictures))
    draw_changes(target, found, count=count)
    if as_json:
        _print_json(found.after, target, against=found.before.name, **_changed(found, count))
        return
    print(sentence(found))
    if not found.changed:
        print("no answer changed; the image shows where the probabilities moved most")
    say(target)


def _open(artefact: Path) -> tuple[Path, Card]:
    """The file that answers for a folder, as in `pocketzoo predict`, else its checkpoint; and its card."""
    try:
        path = graph_paths(artefact)[-1]
    except ArtefactError:
        path = artefact / CHECKPOINT
        if not path.is_file():
            raise
        note(f"{path} answers, through torch: there is no ONNX file; `pocketzoo export {artefact}` writes one")
    return path, _card(path)


def _card(path: Path) -> Card:
    if path.suffix == ".safetensors":
        from zoo.networks import checkpoint

        return checkpoint.read_card(path)
    from zoo.artefact import onnx_file as graph

    return graph.read_card(path)


def _labelled(artefact: Path, images: Sequence[Path] | None, data: str | None, split: str) -> tuple[Answers, Any]:
    """The answers to a whole split, and its true labels int64 [N]."""
    from zoo.explain.predictions.answers import answer

    path, card = _open(artefact)
    answers = answer(path, card, pictures_of(path, card, images=images, data=data, split=split, labels_needed=True))
    return answers, answers.truth


def _original(path: Path, card: Card, against: Path | None) -> Path:
    """What a file is compared with."""
    from zoo.training.parents import find_ancestors

    if against is not None:
        try:
            parent = graph_paths(against)[0]
        except ArtefactError:
            parent = against / CHECKPOINT
            if not parent.is_file():
                raise
        if parent.resolve() == path.resolve():
            raise UsageError(f"--against {against}: this is the very file that is compared; name another one")
        return parent
    found = find_ancestors(path, card, [output_root()])
    if not found:
        made = " and ".join(entry.stage for entry in card.lineage) or "nothing that it records"
        raise ArtefactError(
            f"{path} (made by {made}): no file that it was compressed from is in {output_root()} or beside it; "
            "name one with --against"
        )
    if "prune" in (entry.stage for entry in _card(found[-1]).lineage):
        note(f"{found[-1]} was pruned, and what it was pruned from is not in {output_root()} or beside it")
    return found[-1]


def _accuracy(answers: Answers, truth: Any) -> str:
    from zoo.training.evaluate import accuracy

    found = accuracy(answers.logits, truth, dataset="", split="")
    return f"top-1 {found.top1:.2%} (95% interval {found.low:.2%} to {found.high:.2%}), n = {found.n:,}"


def _row(answers: Answers, place: int) -> dict[str, Any]:
    """What is known of one image and its answer."""
    probabilities, best = answers.shares(place), int(answers.best[place])
    row = {
        "file": answers.samples[place].name,
        "answer": answers.labels[best],
        "probability": float(probabilities[best]),
    }
    if answers.truth is not None:
        true = int(answers.truth[place])
        row |= {"true": answers.labels[true], "probability_of_true": float(probabilities[true])}
    return row


def _changed(found: Changes, count: int) -> dict[str, Any]:
    """Counts, and by group every image with another answer; of the others those that are drawn."""
    from zoo.explain.predictions.compared import shown

    groups = {name: places for name, places in found.groups.items() if name != "moved"}
    rows = {
        name: [
            {
                "before": _row(found.before, place),
                "after": _row(found.after, place),
                "movement": float(found.movement[place]),
            }
            for place in places
        ]
        for name, places in {**groups, "moved": shown(found, count).get("moved", ())}.items()
    }
    return {"changed": found.changed, "agreement": found.agreement, **rows}


def _table(*left: str, right: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in left:
        table.add_column(heading)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _print_json(answers: Answers, target: Path | None, **content: Any) -> None:
    head: dict[str, Any] = {"file": answers.name, "source": answers.source, "n": len(answers.samples)}
    if answers.right is not None:
        head["right"] = int(answers.right.sum())
    print(json.dumps(head | content | {"picture": str(target) if target else None}))
