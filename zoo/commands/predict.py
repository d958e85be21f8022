"""Commands that ask one artefact: what images show, and what its card says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.base.commandline import LOOK, SERVE, Artefact, AsJson, Engine, app
from zoo.base.errors import ArtefactError, ImageError, UsageError
from zoo.base.files import CHECKPOINT, graph_paths

if TYPE_CHECKING:
    from zoo.artefact.predictor import Predictor
    from zoo.training.zero_shot import ZeroShot


@app.command(rich_help_panel=SERVE)
def predict(
    artefact: Artefact,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(help="Labels per image.")] = 3,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            help="Of an imported CLIP: answer with these labels instead, separated by commas, or a file with one per "
            "line. torch computes. Needs pocketzoo[clip].",
            show_default=False,
        ),
    ] = None,
    engine: Engine = None,
    as_json: AsJson = False,
) -> None:
    """Classify image files.

    A folder's INT8 file answers where there is one.
    """
    predictor = _predictor(artefact, engine, labels)
    for image in images:
        try:
            data = image.read_bytes()
        except OSError as error:
            raise ArtefactError(f"{image}: cannot be read: {error}") from error
        try:
            (answer,) = predictor.predict([data], top=top)
        except ImageError as error:
            raise ImageError(f"{image}: {error}") from error
        pairs = list(zip(answer.labels, answer.probabilities, strict=True))
        if as_json:
            print(
                json.dumps(
                    {
                        "image": str(image),
                        "labels": [{"label": label, "probability": p} for label, p in pairs],
                        "engine": predictor.engine,
                    }
                )
            )
        else:
            print(f"{image}: " + ", ".join(f"{label} {p:.1%}" for label, p in pairs))


def _predictor(artefact: Path, engine: str | None, labels: str | None) -> Predictor | ZeroShot:
    if labels is None:
        from zoo.artefact.predictor import Predictor

        return Predictor(graph_paths(artefact)[-1], engine=engine)
    if engine is not None:
        raise UsageError("--engine computes a file with its own labels; with --labels torch computes the checkpoint")
    from zoo.networks.weights.labels import read_labels
    from zoo.training.zero_shot import ZeroShot

    given = Path(labels)
    named = [label.strip() for label in labels.split(",")]
    return ZeroShot(artefact, read_labels(given) if given.is_file() else [label for label in named if label])


@app.command(rich_help_panel=LOOK)
def show(artefact: Artefact) -> None:
    """Print the card of an artefact as JSON.

    Of a checkpoint or an ONNX file.
    """
    path = artefact / CHECKPOINT if artefact.is_dir() and (artefact / CHECKPOINT).is_file() else artefact
    if path.suffix == ".safetensors":
        from zoo.networks.checkpoint import read_card
    else:
        from zoo.artefact.onnx_file import read_card

        path = graph_paths(path)[0]
    print(json.dumps(dataclasses.asdict(read_card(path)), indent=2, sort_keys=True))
