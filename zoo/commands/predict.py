"""Commands that ask one artefact: what images show, and what its card says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.base.commandline import LOOK, SERVE, Artefact, AsJson, Engine, app
from zoo.base.errors import ArtefactError, ImageError
from zoo.base.files import CHECKPOINT, graph_paths


@app.command(rich_help_panel=SERVE)
def predict(
    artefact: Artefact,
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    top: Annotated[int, typer.Option(help="Labels per image.")] = 3,
    engine: Engine = None,
    as_json: AsJson = False,
) -> None:
    """Classify image files.

    A folder's INT8 file answers where there is one.
    """
    from zoo.artefact.predictor import Predictor

    predictor = Predictor(graph_paths(artefact)[-1], engine=engine)
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
