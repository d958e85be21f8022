"""The command that writes what an image of the server is built from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from zoo.base.commandline import SERVE, AsJson, app, short

__all__ = ["ship"]


@app.command(rich_help_panel=SERVE)
def ship(
    out: Annotated[Path, typer.Argument(help="Folder to write: new, empty, or an earlier shipment.")],
    artefacts: Annotated[
        list[Path] | None, typer.Argument(help="Folders or ONNX files; default: all that the server serves.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the objects in the cluster, and of the bento.")] = "pocketzoo",
    image: Annotated[
        str | None, typer.Option(help="registry/path:tag; default: the name, and a tag drawn from the contents.")
    ] = None,
    replicas: Annotated[int, typer.Option(help="The least number of pods; up to four times as many under load.")] = 2,
    keys_file: Annotated[
        Path | None, typer.Option("--keys-file", help="API keys of `pocketzoo key`, for a Secret of the cluster.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a folder to build a container image or bento from.

    With models, sources, pinned requirements and Kubernetes manifests.
    """
    from serve.shipping.plan import plan_shipment, write_shipment
    from zoo.base.files import output_root
    from zoo.base.progress import note

    shipment = plan_shipment(
        artefacts or (), root=output_root(), name=name, image=image, replicas=replicas, keys_file=keys_file
    )
    write_shipment(shipment, out)
    for sentence in shipment.left_out:
        note(f"left out: {sentence}")
    if as_json:
        models = [model.target for model in shipment.models]
        print(json.dumps({"path": str(out), "name": name, "image": shipment.image, "models": models}))
        return
    size = sum(model.bytes for model in shipment.models)
    print(f"{short(out)}: {len(shipment.models)} models, {size / 1e6:.1f} MB; image {shipment.image}")
    note(f"cd {out} && docker build -f Containerfile -t {shipment.image} .")
