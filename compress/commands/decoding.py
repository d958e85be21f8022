"""The command that decides whether an artefact's large JPEG files are decoded small, by measuring what that changes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.base.commandline import SERVE, Artefact, AsJson, app, short
from zoo.base.errors import UsageError
from zoo.base.files import graph_paths
from zoo.base.progress import note, track
from zoo.commands.runs import notes_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from zoo.artefact.card import Draft, Input
    from zoo.artefact.predictor import Predictor
    from zoo.data.dataset import Dataset, Sample

    Floats = npt.NDArray[np.float32]

__all__ = ["LEAST_IMAGES", "decoding"]

LEAST_IMAGES = 100
"""Fewer say too little: of a hundred, one that changes is a point of top-1 already."""

_CPU = ("CPUExecutionProvider",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Compared:
    """The images that would be decoded small, decoded both ways."""

    places: tuple[int, ...]
    """Which of the samples they are."""
    whole: Floats
    """Logits [N, K] of them, decoded whole."""
    small: Floats
    """Logits [N, K] of them, decoded small."""
    whole_ms: float
    """Median time of decoding one whole."""
    small_ms: float
    """Median time of decoding one small."""


@app.command(rich_help_panel=SERVE)
def decoding(
    artefact: Artefact,
    images: Annotated[
        str | None,
        typer.Option(
            "--images",
            help="Folder of images by class, or a data set by name, whose validation split is measured. "
            "Default: the artefact's own.",
            show_default=False,
        ),
    ] = None,
    max_drop: Annotated[float, typer.Option("--max-drop", help="Budget in points of top-1.")] = 0.5,
    as_json: AsJson = False,
) -> None:
    """Let an artefact decode large JPEG files small.

    At 1/2, 1/4 or 1/8 of their size, if its accuracy stays within a budget.
    """
    from zoo.artefact.predictor import Predictor

    if not 0 <= max_drop <= 100:
        raise UsageError(f"--max-drop: expected points of top-1, 0 to 100, got {max_drop}")
    for path in graph_paths(artefact):
        predictor = Predictor(path, providers=_CPU)
        dataset = notes_of(path, images).data.open_for(predictor.card)
        row, draft = _judge(predictor, dataset, max_drop)
        if row["n"] >= LEAST_IMAGES and draft != predictor.card.use.input.jpeg_draft:
            _write(path, draft, None if images else dataset)
        print(json.dumps(row) if as_json else _sentence(row, predictor))


def _judge(predictor: Predictor, dataset: Dataset, max_drop: float) -> tuple[dict[str, Any], Draft | None]:
    """What was measured, and what the card shall record: None where decoding small shall be off."""
    from zoo.artefact.card import Draft
    from zoo.base.statistics.paired import paired_difference
    from zoo.data.image_set import truth
    from zoo.training.evaluate import accuracy

    card, samples = predictor.card, dataset.splits["validation"]
    labels = truth(dataset, "validation", card.use.labels, where=str(predictor.path))
    found = _compare(predictor, samples)
    about = {"artefact": predictor.path.resolve().parent.name, "file": predictor.path.name, "digest": predictor.digest}
    row: dict[str, Any] = about | {"dataset": dataset.name, "split": "validation", "images": len(samples), "on": False}
    if found is None:
        return row | {"n": 0}, None
    labels = labels[list(found.places)]
    before, after = (
        accuracy(logits, labels, dataset=dataset.name, split="validation") for logits in (found.whole, found.small)
    )
    answers = found.whole.argmax(axis=1), found.small.argmax(axis=1)
    gained = int(((answers[1] == labels) & (answers[0] != labels)).sum())
    lost = int(((answers[0] == labels) & (answers[1] != labels)).sum())
    middle, spread = paired_difference(len(labels), gained=gained, lost=lost)
    draft = Draft(
        dataset=dataset.name,
        split="validation",
        digest=dataset.digest,
        n=len(labels),
        agreement=float((answers[0] == answers[1]).mean()),
        top1_before=before.top1,
        top1_after=after.top1,
        max_drop=max_drop / 100,
    )
    on = len(labels) >= LEAST_IMAGES and lost - gained <= max_drop / 100 * len(labels)
    row |= {
        "n": len(labels),
        "on": on,
        "before": dataclasses.asdict(before),
        "after": dataclasses.asdict(after),
        "difference": [middle - 1.96 * spread, middle + 1.96 * spread],
        "agreement": draft.agreement,
        "max_drop": max_drop,
        "decode_p50_ms": {"before": found.whole_ms, "after": found.small_ms},
    }
    return row, draft if on else None


def _compare(predictor: Predictor, samples: Sequence[Sample]) -> _Compared | None:
    """Both ways of decoding on the same images, taking turns; None where they are the same for all of them."""
    import numpy as np

    from zoo.artefact.preprocess import decode_for, normalise, sniff, to_input_size

    spec = predictor.card.use.input
    places: list[int] = []
    times: tuple[list[float], list[float]] = ([], [])
    logits: tuple[list[Floats], list[Floats]] = ([], [])
    for place, sample in enumerate(track(samples, total=len(samples), description="Decoding both ways")):
        data = sample.read()
        if sniff(data) != "JPEG":
            continue
        decoded: dict[int, Image] = {}
        taken: dict[int, float] = {}
        for way in (0, 1) if place % 2 else (1, 0):
            begin = time.perf_counter()
            decoded[way] = decode_for(data, spec, small=bool(way))
            taken[way] = (time.perf_counter() - begin) * 1e3
        if decoded[0].size == decoded[1].size:
            continue
        places.append(place)
        for way, image in decoded.items():
            times[way].append(taken[way])
            logits[way].append(predictor.logits(normalise(to_input_size(image, spec), spec)[None]))
    if not places:
        return None
    whole_ms, small_ms = (float(np.median(values)) for values in times)
    whole, small = (np.concatenate(rows) for rows in logits)
    return _Compared(places=tuple(places), whole=whole, small=small, whole_ms=whole_ms, small_ms=small_ms)


def _write(path: Path, draft: Draft | None, own: Dataset | None) -> None:
    """Record `draft` in the card of an ONNX file, and anew whatever the card says that depends on decoding.

    Args:
        path: the file.
        draft: what was measured; None switches decoding small off.
        own: the data set that the card's accuracy is of; default: the one that run.json names, if any.
    """
    from compress.write_graph import publish
    from zoo.artefact import onnx_file as graph
    from zoo.training.workspace import card_if_readable, read_notes

    model, card = graph.load(path)
    notes = None if own else card_if_readable(read_notes, path.parent)
    own = own or (notes.data.open_for(card) if notes else None)
    spec: Input = dataclasses.replace(card.use.input, jpeg_draft=draft)
    card = dataclasses.replace(
        card,
        use=dataclasses.replace(card.use, input=spec, golden=None, reference=None),
        inform=dataclasses.replace(card.inform, metrics=()),
    )
    if own is None:
        note(f"{path}: run.json beside it names no data set, so its card no longer tells its accuracy")
    publish(model, card, path, dataset=own)


def _sentence(row: dict[str, Any], predictor: Predictor) -> str:
    from zoo.artefact.preprocess import least_edge

    name = short(predictor.path)
    if not row["n"]:
        return (
            f"{name}: nothing would be different: none of the {row['images']} validation images of {row['dataset']} is "
            f"a JPEG file whose shorter edge has {2 * least_edge(predictor.card.use.input)} pixels or more"
        )
    before, after, (low, high) = row["before"], row["after"], row["difference"]
    verdict = "on"
    if not row["on"]:
        few = row["n"] < LEAST_IMAGES
        reason = f"fewer than {LEAST_IMAGES} images" if few else f"the budget is {row['max_drop']:g} points"
        verdict = f"off: {reason}"
    p50 = row["decode_p50_ms"]
    return (
        f"{name}: top-1 {before['top1']:.2%} ({before['low']:.2%} to {before['high']:.2%}) whole, "
        f"{after['top1']:.2%} ({after['low']:.2%} to {after['high']:.2%}) small, difference {low * 100:+z.2f} to "
        f"{high * 100:+z.2f} points, {row['agreement']:.2%} of answers the same, n = {row['n']} large JPEG files of "
        f"{row['images']}, decoding p50 {p50['before']:.1f} -> {p50['after']:.1f} ms; "
        f"decoding small is {verdict}"
    )
